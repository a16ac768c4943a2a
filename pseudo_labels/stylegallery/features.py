"""DDIM inversion and the time-weighted average of its features (StyleGallery §3.1).

Shape legend: C channels, c latent channels, h w cells of the feature grid, T timesteps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from pseudo_labels.stylegallery.config import FeatureConfig
from pseudo_labels.stylegallery.model import DiffusionModel
from regionroute.errors import UserError
from regionroute.files import settings_hash

Predict = Callable[[Tensor, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class ImageFeatures:
    """Features of an image.

    Attributes:
        mix: weighted average of the features, [C, h, w].
        latent: the clean latents [c, h, w], on the same grid.
        inverted: the latents at the inversion's last timestep, [c, h, w].
    """

    mix: Tensor
    latent: Tensor
    inverted: Tensor


class FeatureSource(Protocol):
    """A source of image features: the diffusion model, or another network.

    Attributes:
        fingerprint: changes whenever the same image would give other features.
    """

    fingerprint: str

    def describe(self, image: Tensor) -> ImageFeatures:
        """Features of an image [3, H, W] in [0, 1]."""
        ...


def time_weights(steps: int, midpoint: float = 0.7, sharpness: float = 5.0) -> Tensor:
    """Weights of T features: w_i ∝ 1 / (1 + exp(5 (i/T − 0.7))), which decreases with the noise.

    Returns:
        [T], strictly decreasing, with sum 1, in float64.
    """
    places = torch.arange(steps, dtype=torch.float64) / steps
    decay = torch.sigmoid(-sharpness * (places - midpoint))
    return decay / decay.sum()


def inversion_timesteps(steps: int, training_steps: int = 1000, offset: int = 1) -> list[int]:
    """Ascending timesteps with "leading" spacing: 1, 67, …, 925 for 15 of 1000.

    Raises:
        ValueError: more steps than the model was trained with.
    """
    if steps > training_steps:
        raise ValueError(f"{steps} timesteps requested, the model has {training_steps}")
    ratio = training_steps // steps
    return [min(place * ratio + offset, training_steps - 1) for place in range(steps)]


def ddim_move(latents: Tensor, noise: Tensor, alpha: float, target_alpha: float) -> Tensor:
    """A deterministic DDIM step between two noise levels, in either direction.

    Args:
        latents: z at the level with ᾱ = `alpha`, any shape.
        noise: the predicted noise ε, of the same shape.
        alpha: ᾱ of the current level, in (0, 1].
        target_alpha: ᾱ of the next level.

    Returns:
        √(ᾱ'/ᾱ) (z − √(1−ᾱ) ε) + √(1−ᾱ') ε.
    """
    clean = (target_alpha / alpha) ** 0.5 * (latents - (1 - alpha) ** 0.5 * noise)
    return clean + (1 - target_alpha) ** 0.5 * noise


def alpha_before(alphas: Tensor, timestep: int, ratio: int) -> float:
    """ᾱ of the level before a timestep, max(0, t − ratio)."""
    return float(alphas[max(0, timestep - ratio)])


@torch.no_grad()
def invert(
    latent: Tensor,
    predict: Predict,
    alphas: Tensor,
    config: FeatureConfig,
    offset: int = 1,
    progress: bool = True,
) -> tuple[Tensor, Tensor]:
    """Run the sampler backwards, from the image to noise.

    Args:
        latent: clean latents [1, c, h, w] in float32.
        predict: maps (z, t) to the predicted noise, of z's shape, and features [1, C, h', w'].
        alphas: ᾱ of all training timesteps.
        config: number of timesteps and their weights.
        offset: the first timestep.
        progress: show a progress bar.

    Returns:
        The weighted average of the features [1, C, h', w'] in float32, and the last latents.
    """
    timesteps = inversion_timesteps(config.steps, len(alphas), offset)
    ratio = len(alphas) // config.steps
    weights = time_weights(config.steps, config.midpoint, config.sharpness)
    mix: Tensor | None = None
    for weight, timestep in zip(
        weights.tolist(),
        tqdm(timesteps, desc="inversion", unit="step", leave=False, disable=not progress),
        strict=True,
    ):
        noise, features = predict(latent, timestep)
        before = alpha_before(alphas, timestep, ratio)
        latent = ddim_move(latent, noise.float(), before, float(alphas[timestep]))
        part = weight * features.float()
        mix = part if mix is None else mix + part
    assert mix is not None
    return mix, latent


def sample(
    latent: Tensor, predict: Predict, alphas: Tensor, timesteps: Sequence[int], ratio: int
) -> Tensor:
    """Reverse of `invert`: DDIM from the last of ascending timesteps to the image."""
    for timestep in reversed(timesteps):
        noise, _ = predict(latent, timestep)
        before = alpha_before(alphas, timestep, ratio)
        latent = ddim_move(latent, noise.float(), float(alphas[timestep]), before)
    return latent


class DiffusionFeatures:
    """The features of StyleGallery, as a `FeatureSource`.

    Args:
        model: the diffusion model.
        config: timesteps, up-block, weights.
        progress: show progress bars.

    Raises:
        UserError: the model has no such up-block.
    """

    def __init__(self, model: DiffusionModel, config: FeatureConfig, progress: bool = True) -> None:
        blocks = len(model.unet.up_blocks)
        self._block = max(0, blocks - 2) if config.block is None else config.block
        if self._block >= blocks:
            raise UserError(f"features.block is {config.block}: this model has {blocks} up-blocks")
        self.model, self.config, self._progress = model, config, progress
        self.fingerprint = settings_hash([model.fingerprint, config])

    def describe(self, image: Tensor) -> ImageFeatures:
        """Invert an image [3, H, W] in [0, 1]; results are float32 on the CPU."""
        latent = self.model.encode(image)
        with self.model.at_work(self.model.unet) as unet:
            held: list[Tensor] = []
            hook = unet.up_blocks[self._block].register_forward_hook(
                lambda module, inputs, output: held.append(output)
            )

            def predict(latents: Tensor, timestep: int) -> tuple[Tensor, Tensor]:
                held.clear()
                text = self.model.text.to(unet.dtype)
                noise = unet(latents.to(unet.dtype), timestep, encoder_hidden_states=text).sample
                return noise, held[0]

            try:
                alphas, offset = self.model.alphas, self.model.offset
                mix, inverted = invert(latent, predict, alphas, self.config, offset, self._progress)
            finally:
                hook.remove()
        size = (latent.shape[-2], latent.shape[-1])
        mix = torch.nn.functional.interpolate(mix, size, mode="nearest")
        return ImageFeatures(mix[0].cpu(), latent[0].cpu(), inverted[0].cpu())

    @property
    def last_timestep(self) -> int:
        """The noise level of the inverted latents."""
        return inversion_timesteps(self.config.steps, len(self.model.alphas), self.model.offset)[-1]
