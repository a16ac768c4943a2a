import pytest
import torch

from pseudo_labels.stylegallery.config import FeatureConfig
from pseudo_labels.stylegallery.features import (
    DiffusionFeatures,
    inversion_timesteps,
    invert,
    sample,
    time_weights,
)
from pseudo_labels.stylegallery.models.stable_diffusion import StableDiffusion, ddim_move
from regionroute.errors import UserError

ALPHAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
ALPHAS = (1 - ALPHAS).cumprod(0)
CONFIG = FeatureConfig()
SCHEDULE = StableDiffusion(  # its noise levels alone
    torch.nn.Identity(), torch.nn.Identity(), torch.zeros(1), ALPHAS, 1, "x", torch.device("cpu")
)


def predicting(noise):
    return lambda latent, timestep: (noise, latent * timestep)


def test_weights_fall_and_weigh_half_at_the_midpoint():
    weights = time_weights(15)
    assert weights.sum().item() == pytest.approx(1)
    assert (weights.diff() < 0).all()
    decay = torch.sigmoid(-5 * (torch.arange(15) / 15 - 0.7))
    assert decay[0].item() == pytest.approx(0.9707, abs=1e-4)
    assert torch.allclose(weights, (decay / decay.sum()).double())
    assert weights[0].item() == pytest.approx(0.094, abs=5e-4)
    assert weights[-1].item() == pytest.approx(0.023, abs=5e-4)
    # At 0.7 T, which is a whole number for ten steps, the decay is one half.
    ten = time_weights(10)
    undecayed = ten[0] / torch.sigmoid(torch.tensor(3.5))
    assert (ten[7] / undecayed).item() == pytest.approx(0.5, abs=1e-6)


def test_timesteps_are_those_of_the_leading_spacing():
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(steps_offset=1)
    scheduler.set_timesteps(15)
    ours = inversion_timesteps(15)
    assert ours == scheduler.timesteps.flip(0).tolist()
    assert (ours[0], ours[1], ours[-1]) == (1, 67, 925)
    with pytest.raises(ValueError, match="has 1000"):
        inversion_timesteps(1001)


def test_a_constant_noise_is_inverted_exactly():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(1, 4, 8, 8, generator=generator, dtype=torch.float64)
    noise = torch.randn(1, 4, 8, 8, generator=generator, dtype=torch.float64)
    predict = lambda latent, timestep: (noise, latent)  # noqa: E731
    _, inverted = invert(start, predict, SCHEDULE, CONFIG, progress=False)
    assert (inverted - start).abs().max() > 0.1
    back = sample(inverted, predict, SCHEDULE, inversion_timesteps(15), 66)
    assert torch.allclose(back, start, atol=1e-5)


def test_without_noise_inversion_scales_by_the_alphas():
    start = torch.ones(1, 4, 2, 2, dtype=torch.float64)
    predict = predicting(torch.zeros_like(start))
    mix, inverted = invert(start, predict, SCHEDULE, CONFIG, progress=False)
    timesteps, level = inversion_timesteps(15), 1.0
    expected, before = torch.zeros_like(start), start
    for weight, timestep in zip(time_weights(15), timesteps, strict=True):
        expected += weight * before * timestep
        level *= (float(ALPHAS[timestep]) / float(ALPHAS[max(0, timestep - 66)])) ** 0.5
        before = start * level
    assert torch.allclose(inverted, start * level)
    assert torch.allclose(mix.double(), expected, rtol=1e-5)


def test_a_move_and_its_way_back():
    latents, noise = torch.randn(2, 1, 4, 4, 4, dtype=torch.float64)
    there = ddim_move(latents, noise, 0.9, 0.2)
    assert torch.allclose(ddim_move(there, noise, 0.2, 0.9), latents)


def test_the_models_features(model, pictures):
    source = DiffusionFeatures(model, FeatureConfig(steps=3), progress=False)
    found = source.describe(pictures[0])
    assert found.mix.shape == (64, 8, 8)  # the last but one up-block, after its upsampler
    assert found.latent.shape == found.inverted.shape == (4, 8, 8)
    again = source.describe(pictures[0])
    assert torch.equal(found.mix, again.mix)
    assert not model.unet.up_blocks[2]._forward_hooks
    assert source.last_timestep == 667
    with pytest.raises(UserError, match="has 4 blocks"):
        DiffusionFeatures(model, FeatureConfig(block=4))
