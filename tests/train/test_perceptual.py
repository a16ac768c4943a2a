"""The perceptual loss: what it measures, where its gradient goes."""

import pytest
import torch
from safetensors.torch import save_file

from regionroute.config.io import load_config
from regionroute.config.losses import PerceptualConfig
from regionroute.config.run import RunConfig
from regionroute.errors import UserError
from regionroute.models.efficientnet_lite import load_efficientnet_lite
from regionroute.models.perceptual import BLOCKS, EFFICIENTNET, LAYERS, load_features
from train.perceptual import PerceptualLoss


@pytest.fixture(scope="module")
def vgg(tmp_path_factory, vgg_weights):
    path = tmp_path_factory.mktemp("vgg") / "vgg16.safetensors"
    save_file(vgg_weights(), path)
    return path


def picture(seed):
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def loss_of(network, **settings):
    """Of latents that are half the pictures."""
    config = PerceptualConfig(network=str(network), **settings)
    return PerceptualLoss(config, lambda latents: 2 * latents, "--vgg ")


def test_it_is_the_distance_of_features_with_channels_of_length_one(vgg):
    loss = loss_of(vgg)
    found, wanted = (loss.network.network(picture(seed), LAYERS) for seed in (0, 1))

    expected = torch.zeros(2)
    for a, b in zip(found, wanted, strict=True):
        a, b = a.clamp(min=0), b.clamp(min=0)
        a, b = (maps / maps.norm(dim=1, keepdim=True).clamp(min=1e-6) for maps in (a, b))
        expected += ((a - b) ** 2).sum(1).mean((1, 2))
    assert expected.min() > 0
    assert torch.allclose(loss(picture(0) / 2, picture(1) / 2), expected, rtol=1e-5)
    assert loss(picture(0) / 2, picture(0) / 2).tolist() == [0, 0]


def test_low_precision_is_near(vgg):
    pair = picture(0) / 2, picture(1) / 2
    exact, low = loss_of(vgg)(*pair), loss_of(vgg, bfloat16=True)(*pair)
    assert not torch.equal(exact, low)
    assert torch.allclose(exact, low, rtol=0.02)


@pytest.mark.parametrize("kind", ["vgg", EFFICIENTNET])
def test_it_teaches_the_prediction_and_not_the_network(vgg, kind):
    loss = loss_of(vgg if kind == "vgg" else kind)
    predicted, target = (picture(0) / 2).requires_grad_(), (picture(1) / 2).requires_grad_()
    loss(predicted, target).sum().backward()

    assert predicted.grad.abs().max() > 0
    assert target.grad is None
    assert not any(p.requires_grad for p in loss.network.parameters())


@pytest.mark.parametrize("kind", ["vgg", EFFICIENTNET])
def test_a_step_along_its_gradient_brings_the_picture_nearer(vgg, kind):
    loss, target = loss_of(vgg if kind == "vgg" else kind), picture(1) / 2
    predicted = (picture(0) / 2).requires_grad_()
    before = loss(predicted, target).sum()
    before.backward()
    step = 0.02 * predicted.grad / predicted.grad.abs().max()
    assert loss(predicted.detach() - step, target).sum() < before


def test_the_installed_network_gives_the_outputs_of_its_blocks():
    shared = load_efficientnet_lite()
    expected, _ = shared(2 * picture(0) - 1, BLOCKS)
    maps = load_features(EFFICIENTNET, "")
    found = maps(picture(0))
    assert [m.shape[-1] for m in found] == [16, 8, 4, 2]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert maps.network is not shared  # which the image encoder moves and converts


def test_the_old_name_of_the_setting_is_read(vgg):
    config = load_config(None, [f"flow.perceptual.vgg={vgg}"], RunConfig)
    assert config.flow.perceptual.network == str(vgg)


def test_weights_that_are_not_there_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"--vgg .*none"):
        loss_of(tmp_path / "none")


@pytest.mark.parametrize("family", ["runs", "klein_runs"])
def test_a_run_trains_on_it(family, vgg, request):
    runs = request.getfixturevalue(family)
    asked = [f"flow.perceptual.network={vgg}", "flow.perceptual.weight=0.5", "supervision.focus=0"]
    assert runs("without", "supervision.focus=0") == 0
    assert runs("with", *asked) == 0
    assert runs("accumulated", *asked, "train.accumulation=2", "train.preview_every=0") == 0

    first, plain = runs.losses("with")[0], runs.losses("without")[0]
    assert first["flow"] == pytest.approx(plain["flow"], rel=1e-6)
    assert first["perceptual"] > 0
    assert first["total"] == pytest.approx(plain["total"] + 0.5 * first["perceptual"], rel=1e-5)
    assert "perceptual" not in plain
    assert runs.difference("with", "accumulated") < 1e-5
    one, other = runs.experts("with"), runs.experts("without")
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_a_share_of_each_batch_gets_it(runs, vgg):
    asked = [f"flow.perceptual.network={vgg}", "supervision.focus=0", "train.global_batch=4"]
    whole, half = ("train.accumulation=1", "flow.perceptual.share=0.5")
    assert runs("whole", *asked, whole) == 0
    assert runs("half", *asked, half) == 0
    assert runs("accumulated", *asked, half, "train.accumulation=4", "train.preview_every=0") == 0
    one, other = runs.losses("half")[0], runs.losses("whole")[0]
    assert one["flow"] == pytest.approx(other["flow"], rel=1e-6)
    # The row shows the mean over those that get it; the total is over all.
    assert one["total"] == pytest.approx(
        one["flow"] + 0.2 * one["cover"] + 0.15 * one["perceptual"] / 2, rel=1e-5
    )
    assert one["perceptual"] != other["perceptual"]
    assert runs.difference("half", "accumulated") < 1e-5


def test_weights_that_are_not_there_end_a_run_before_it_begins(runs, capsys):
    assert runs("run", "flow.perceptual.network=nowhere.safetensors") == 2
    said = capsys.readouterr()
    assert "flow.perceptual.network=nowhere.safetensors: no such file" in said.err
    assert "to encode" not in said.out
    assert not runs.output("run").joinpath("losses.jsonl").exists()
