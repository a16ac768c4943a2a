import copy

import pytest
import torch

from pseudo_labels.stylegallery.config import PRESETS, EnergyConfig
from pseudo_labels.stylegallery.energy import AttentionEnergy
from pseudo_labels.stylegallery.matching import Match
from pseudo_labels.stylegallery.optimise import (
    OptimState,
    energy_timesteps,
    first_latents,
    guide,
    guided_timesteps,
    minimise,
)


@pytest.fixture
def latents():
    return torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def build(model, latents, **settings):
    labels = torch.ones(8, 8, dtype=torch.int64)
    labels[:, 4:] = 2
    matches = [Match(1, 0, 2, 0, 0, 0, 0), Match(2, 1, 1, 0, 0, 0, 0)]
    regions = (matches, labels, [labels, labels])
    config = EnergyConfig(**{"steps": 20, **settings})
    return AttentionEnergy(model, latents[:1], latents[1:], regions, config)


def run(energy, start, model, **options):
    steps = energy_timesteps(energy.config, len(model.alphas), model.offset)
    return minimise(energy, OptimState(start.clone()), steps, progress=False, **options)


def test_twenty_steps_lower_the_loss_and_restore_the_model(model, latents):
    text = model.text.expand(3, -1, -1)
    with torch.no_grad():
        before = model.unet(latents, 9, encoder_hidden_states=text).sample
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    energy = build(model, latents)
    state = run(energy, start, model)
    assert len(state.losses) == 20
    fixed = energy.anchors(300)
    first, last = (energy.value(z, 300, fixed).total.item() for z in (start, state.latents))
    assert last < 0.9 * first
    with torch.no_grad():
        after = model.unet(latents, 9, encoder_hidden_states=text).sample
    assert torch.equal(before, after)


def test_equal_runs_are_equal(model, latents):
    one, other = (run(build(model, latents, steps=4), latents[:1], model) for _ in range(2))
    assert torch.equal(one.latents, other.latents)


def test_pairs_of_steps_look_at_the_references_once(model, latents, monkeypatch):
    settings = dict(override.split("=") for override in PRESETS["pairs"])
    full = EnergyConfig()
    assert int(settings["energy.steps"]) * int(settings["energy.iterations"]) == full.steps
    energy = build(model, latents, steps=3, iterations=int(settings["energy.iterations"]))
    looked, look = [], energy.anchors
    monkeypatch.setattr(energy, "anchors", lambda t: looked.append(t) or look(t))
    state = run(energy, latents[:1], model)
    assert len(state.losses) == 6
    assert looked == energy_timesteps(energy.config, 1000, 1)


def test_a_heavy_content_loss_keeps_the_content(model, latents):
    start = first_latents(latents[2:], latents[:1], "content")
    distances = []
    for weight in (0.0, 1000.0):
        energy = build(model, latents, content_weight=weight)
        state = run(energy, start, model)
        distances.append((state.latents - latents[:1]).abs().mean().item())
    assert distances[1] < 0.5 * distances[0]


def test_a_stopped_run_goes_on_as_if_it_had_not(model, latents):
    energy = build(model, latents, steps=6, iterations=2, save_every=2)
    saved = []
    whole = run(energy, latents[:1], model, save=lambda s: saved.append(copy.deepcopy(s)))
    assert [state.done for state in saved] == [2, 4]
    restored = OptimState.restored(saved[0].tensors(), torch.device("cpu"))
    steps = energy_timesteps(energy.config, 1000, 1)
    resumed = minimise(energy, restored, steps, progress=False)
    assert torch.equal(resumed.latents, whole.latents)
    assert resumed.losses == whole.losses


def test_guided_mode_lowers_the_energy_and_resumes(model, latents):
    clean = (latents[:1], latents[1:])
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    steps = guided_timesteps(925, 4)
    losses = {}
    for rate in (1e-6, 0.05):
        energy = build(model, latents, steps=4, iterations=3, learning_rate=rate)
        state = guide(energy, OptimState(noise[:1]), steps, clean, noise, progress=False)
        losses[rate] = state.losses[2][0]
    assert losses[0.05] < losses[1e-6]  # after three inner steps of the first level
    energy = build(model, latents, steps=4, save_every=2)
    saved = []
    arguments = (steps, clean, noise)
    whole = guide(
        energy,
        OptimState(noise[:1]),
        *arguments,
        save=lambda s: saved.append(copy.deepcopy(s)),
        progress=False,
    )
    restored = OptimState.restored(saved[0].tensors(), torch.device("cpu"))
    resumed = guide(energy, restored, *arguments, progress=False)
    assert torch.equal(resumed.latents, whole.latents)


def test_starts(latents):
    inverted = 3 + 2 * latents[:1]
    spatial = first_latents(inverted, latents[1:2], "instance")
    assert torch.allclose(spatial.mean((2, 3)), torch.zeros(1, 4), atol=1e-5)
    assert torch.allclose(spatial.std((2, 3), unbiased=False), torch.ones(1, 4), atol=1e-4)
    channel = first_latents(inverted, latents[1:2], "channel")
    assert torch.allclose(channel.mean(1), torch.zeros(1, 8, 8), atol=1e-5)
    assert torch.equal(first_latents(inverted, latents[1:2], "content"), latents[1:2])
    assert torch.equal(first_latents(inverted, latents[1:2], "inverted"), inverted)


@pytest.mark.parametrize(
    ("schedule", "kind"), [("leading", "DDIM"), ("trailing", "DDIM"), ("lcm", "LCM")]
)
def test_timesteps_are_those_of_the_schedulers(schedule, kind):
    import diffusers

    scheduler = getattr(diffusers, f"{kind}Scheduler")(steps_offset=1)
    if kind == "DDIM":
        scheduler.register_to_config(timestep_spacing=schedule)
    for steps in (8, 28, 50):
        scheduler.set_timesteps(steps)
        config = EnergyConfig(steps=steps, schedule=schedule)
        assert energy_timesteps(config, 1000, 1) == scheduler.timesteps.tolist()


def test_too_many_timesteps():
    with pytest.raises(ValueError, match="has 50"):
        energy_timesteps(EnergyConfig(schedule="lcm"), 1000, 1)
    with pytest.raises(ValueError, match="ends at 100"):
        guided_timesteps(100, 101)
    assert guided_timesteps(925, 5) == [925, 740, 555, 370, 185]
