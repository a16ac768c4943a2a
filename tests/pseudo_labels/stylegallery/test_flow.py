"""StyleGallery on diffusion transformers: random FLUX bases, and nano-photos."""

import json

import pytest
import torch

from pseudo_labels.stylegallery.config import EnergyConfig, FeatureConfig, FlowConfig
from pseudo_labels.stylegallery.energy import AttentionEnergy
from pseudo_labels.stylegallery.features import DiffusionFeatures, inversion_timesteps, sample
from pseudo_labels.stylegallery.matching import Match
from pseudo_labels.stylegallery.models.base import chosen_layers
from pseudo_labels.stylegallery.models.flow import FlowModel
from pseudo_labels.stylegallery.models.loading import load_model
from pseudo_labels.stylegallery.optimise import (
    OptimState,
    energy_timesteps,
    guide,
    guided_timesteps,
    minimise,
)
from regionroute.cli.main import main as regionroute
from regionroute.data.images import read_image, write_image
from regionroute.errors import UserError
from regionroute.models.tiny_klein import build_tiny_klein


@pytest.fixture(scope="module")
def folders(tiny_base, tmp_path_factory):
    return {"kontext": tiny_base, "klein": build_tiny_klein(tmp_path_factory.mktemp("k") / "klein")}


@pytest.fixture(scope="module")
def models(folders):
    return {name: load_model(str(folder)) for name, folder in folders.items()}


@pytest.fixture(params=["kontext", "klein"])
def flow(request, models):
    """A random model; do not change it."""
    return models[request.param]


@pytest.fixture
def latents(flow, pictures):
    return torch.cat([flow.encode(image) for image in pictures])


def build(model, latents, **settings):
    labels = torch.ones(latents.shape[-2:], dtype=torch.int64)
    labels[:, labels.shape[1] // 2 :] = 2
    matches = [Match(1, 0, 2, 0, 0, 0, 0), Match(2, 1, 1, 0, 0, 0, 0)]
    regions = (matches, labels, [labels, labels])
    config = EnergyConfig(**{"steps": 20, "layers": 2} | settings)
    return AttentionEnergy(model, latents[:1], latents[1:], regions, config)


def test_a_base_is_loaded_by_its_folder(flow, pictures):
    assert isinstance(flow, FlowModel)
    assert flow.layers == len(flow.blocks()) == 3
    assert flow.factor == 4
    latents = flow.encode(pictures[0])
    assert latents.shape == (1, 4, 32, 32)
    assert flow.decode(latents).shape == (3, 64, 64)
    assert flow.backbone.text_encoders() == []  # the empty prompt is encoded


def test_settings_and_weights_are_in_the_fingerprint(folders):
    one, other = (
        load_model(str(folders["kontext"]), flow=FlowConfig(context=context))
        for context in ("own", "none")
    )
    assert one.fingerprint != other.fingerprint


@pytest.mark.parametrize("block", [0, 1, 2])  # double and single blocks
def test_features_are_maps_of_the_image(flow, pictures, block):
    source = DiffusionFeatures(flow, FeatureConfig(steps=2, block=block), progress=False)
    found = source.describe(pictures[0])
    assert found.mix.shape == (32, 32, 32)  # width of the blocks, on the grid of the latents
    assert torch.isfinite(found.mix).all()
    assert found.latent.shape == found.inverted.shape == (4, 32, 32)
    with pytest.raises(UserError, match="has 3 blocks"):
        DiffusionFeatures(flow, FeatureConfig(block=3))


def round_trip(model, latent, refine):
    """Relative error of the sampler after the inversion."""
    from pseudo_labels.stylegallery.features import invert

    config = FeatureConfig(steps=10, refine=refine)
    with model.working(), model.reading(0, latent) as predict:
        _, inverted = invert(latent, predict, model, config, progress=False)
        back = sample(inverted, predict, model, inversion_timesteps(10), 100)
    return float((back - latent).norm() / (inverted - latent).norm())


def test_the_inversion_is_reversed(flow, latents):
    plain, refined = (round_trip(flow, latents[:1], refine) for refine in (0, 3))
    assert plain < 0.2
    assert refined < 0.2 * plain, (plain, refined)


@pytest.mark.parametrize("context", ["own", "none"])
def test_recording_changes_nothing(flow, latents, context):
    model = FlowModel.__new__(FlowModel)
    model.__dict__ = flow.__dict__ | {"config": FlowConfig(context=context)}
    before = [attn.processor for _, attn in model._attention]
    with torch.no_grad():
        plain = model.predict(latents, 300, latents)
        record = model.record(latents, 300, latents, [0, 1, 2])
        assert torch.equal(model.predict(latents, 300, latents), plain)
    assert [attn.processor for _, attn in model._attention] == before
    assert [item.shape for item in record.queries] == [(3, 2, 256, 16)] * 3
    assert len(record.outputs) == 3
    assert plain.shape == latents.shape


def test_a_recorded_block_computes_what_it_computes_unrecorded(flow, latents):
    """The last layer recorded gets the same input with and without recording the ones before."""
    with torch.no_grad():
        alone = flow.record(latents, 300, latents, [2])
        all_three = flow.record(latents, 300, latents, [0, 1, 2])
    assert torch.allclose(alone.queries[0], all_three.queries[2], atol=1e-5)


def test_positions_are_left_out_unless_asked_for(flow, latents):
    flat = latents[:1] * 0 + 0.5  # the same everywhere
    model = FlowModel.__new__(FlowModel)
    model.__dict__ = flow.__dict__ | {"config": FlowConfig(positions=True)}
    with torch.no_grad():
        spread = [m.record(flat, 300, flat, [0]).queries[0].std(2).mean() for m in (flow, model)]
    assert spread[0] < 1e-5 < 0.01 < spread[1]


def test_the_energy_vanishes_where_style_and_content_are_one(flow, latents):
    same = latents[:1].repeat(3, 1, 1, 1)
    labels = torch.ones(latents.shape[-2:], dtype=torch.int64)
    config = EnergyConfig(temperature=1.0)
    regions = ([Match(1, 0, 1, 0, 0, 0, 0)], labels, [labels])
    energy = AttentionEnergy(flow, same[:1], same[1:2], regions, config)
    value = energy.value(same[:1], 400, energy.anchors(400))
    assert value.total.item() == pytest.approx(0, abs=1e-4)


def test_gradients_go_to_the_latents_alone(flow, latents):
    energy = build(flow, latents)
    z = latents[:1].clone().requires_grad_()
    energy.value(z, 300, energy.anchors(300)).total.backward()
    assert z.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in flow.backbone.transformer.parameters())


def test_twenty_steps_lower_the_energy(flow, latents):
    energy = build(flow, latents)
    start = torch.randn(latents[:1].shape, generator=torch.Generator().manual_seed(1))
    timesteps = energy_timesteps(energy.config, flow.training_steps, flow.offset)
    state = minimise(energy, OptimState(start.clone()), timesteps, progress=False)
    fixed = energy.anchors(300)
    first, last = (energy.value(z, 300, fixed).total.item() for z in (start, state.latents))
    assert last < 0.9 * first


def test_guided_mode_runs(flow, latents):
    energy = build(flow, latents, steps=3)
    clean, noise = (latents[:1], latents[1:]), torch.randn_like(latents)
    steps = guided_timesteps(901, 3)
    state = guide(energy, OptimState(noise[:1]), steps, clean, noise, progress=False)
    assert torch.isfinite(state.latents).all()
    assert len(state.losses) == 3


def test_noise_and_steps_are_those_of_the_flow(flow, latents):
    noise = torch.randn_like(latents)
    noisy = flow.noised(latents, noise, 700)
    assert torch.allclose(noisy, 0.3 * latents + 0.7 * noise, atol=1e-6)
    assert torch.allclose(flow.move(noisy, noise - latents, 700, 0), latents, atol=1e-5)


def test_layers_are_counted_or_named():
    assert chosen_layers(None, 16) == list(range(10, 16))  # as published
    assert chosen_layers(None, 3) == [2]
    assert chosen_layers([2, 0], 3) == [0, 2]
    for wrong in (4, [3], []):
        with pytest.raises(ValueError, match="requested, the model has"):
            chosen_layers(wrong, 3)


QUICK = ["--cache", "cache", "size=64", "features.steps=2", "energy.steps=2", "clusters.island=3"]


def run(tmp_path, monkeypatch, pictures, *arguments):
    monkeypatch.chdir(tmp_path)
    write_image("photo.png", pictures[0])
    write_image("refs/a.png", pictures[1])
    return regionroute(["gallery", "photo.png", "--references", "refs", "--out", "out.png",
                        "--device", "cpu", *QUICK, *arguments])  # fmt: skip


@pytest.mark.parametrize("kind", ["kontext", "klein"])
def test_the_command_takes_a_base(folders, kind, tmp_path, monkeypatch, pictures):
    arguments = ("--base", str(folders[kind]), "--dino", "none", "energy.layers=[0,2]")
    assert run(tmp_path, monkeypatch, pictures, *arguments) == 0
    assert read_image("out.png").shape == pictures[0].shape
    facts = json.loads((tmp_path / "out.json").read_text())
    assert facts["settings"]["energy"]["layers"] == [0, 2]


@pytest.mark.slow
def test_nano_photos_paints_itself_when_asked(tmp_path, monkeypatch, pictures):
    assert run(tmp_path, monkeypatch, pictures, "--base", "nano-photos", "--painter", "model") == 0
    assert torch.isfinite(read_image("out.png")).all()
    facts = json.loads((tmp_path / "out.json").read_text())
    assert facts["matches"][0]["semantic"] is not None  # by its own image encoder


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--painter", "network", "--base", "random"], "painter network goes with nano-photos"),
        (["energy.layers=[9]"], "layers [9] requested, the model has 0 to 2"),
        (["--lora", "x.safetensors", "--preset", "lcm"], "--lora goes with Stable Diffusion"),
        (["--base", "nowhere"], "FluxKontextPipeline or Flux2KleinPipeline"),
    ],
)
def test_refused(folders, tmp_path, monkeypatch, pictures, capsys, arguments, words):
    base = ["--base", str(folders["kontext"]), "--dino", "none"]
    assert run(tmp_path, monkeypatch, pictures, *base, *arguments) != 0
    assert words in capsys.readouterr().err
