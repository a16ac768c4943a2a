"""The perceptual loss of pre-training: what it measures, where its gradient goes."""

import pytest
import torch
from safetensors.torch import save_file

from regionroute.errors import UserError
from train.nano_config import PerceptualConfig
from train.perceptual import LAYERS, PerceptualLoss


@pytest.fixture(scope="module")
def vgg(tmp_path_factory, vgg_weights):
    path = tmp_path_factory.mktemp("vgg") / "vgg16.safetensors"
    save_file(vgg_weights(), path)
    return path


def picture(seed):
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def test_it_is_the_distance_of_features_with_channels_of_length_one(vgg):
    loss = PerceptualLoss(PerceptualConfig(vgg=str(vgg), weight=0.5))

    expected = 0.0
    for a, b in zip(
        loss.network(picture(0), LAYERS), loss.network(picture(1), LAYERS), strict=True
    ):
        a, b = a.clamp(min=0), b.clamp(min=0)
        a, b = (maps / maps.norm(dim=1, keepdim=True).clamp(min=1e-6) for maps in (a, b))
        expected += 0.5 * ((a - b) ** 2).sum(1).mean().item()
    assert expected > 0
    assert loss(picture(0), picture(1)).item() == pytest.approx(expected, rel=1e-5)
    assert loss(picture(0), picture(0)).item() == 0


def test_it_teaches_the_prediction_and_not_the_network(vgg):
    loss = PerceptualLoss(PerceptualConfig(vgg=str(vgg)))
    predicted, target = picture(0).requires_grad_(), picture(1).requires_grad_()
    loss(predicted, target).backward()

    assert predicted.grad.abs().max() > 0
    assert target.grad is None
    assert not any(p.requires_grad for p in loss.network.parameters())


def test_a_step_along_its_gradient_brings_the_picture_nearer(vgg):
    loss = PerceptualLoss(PerceptualConfig(vgg=str(vgg)))
    predicted = picture(0).requires_grad_()
    before = loss(predicted, picture(1))
    before.backward()
    step = 0.05 * predicted.grad / predicted.grad.abs().max()
    assert loss(predicted.detach() - step, picture(1)) < before


def test_weights_that_are_not_there_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"base\.perceptual\.vgg=.*none"):
        PerceptualLoss(PerceptualConfig(vgg=str(tmp_path / "none")))
