"""Inversion and the time-weighted average of its features (StyleGallery §3.1).

Shape legend: C channels, c latent channels, h w cells of the feature grid, T timesteps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from pseudo_labels.stylegallery.config import FeatureConfig
from pseudo_labels.stylegallery.models.base import GalleryModel, Predict
from regionroute.errors import UserError
from regionroute.files import settings_hash


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


@torch.no_grad()
def invert(
    latent: Tensor,
    predict: Predict,
    model: GalleryModel,
    config: FeatureConfig,
    progress: bool = True,
) -> tuple[Tensor, Tensor]:
    """Run the sampler backwards, from the image to noise.

    A step takes the prediction at its noisier end, where the sampler takes it too, but of the
    latents at its cleaner end; `refine` replaces these by the step's own result.

    Args:
        latent: clean latents [1, c, h, w] in float32.
        predict: maps (z, t) to the prediction, of z's shape, and features [1, C, h', w'].
        model: gives the sampler's step and the timesteps.
        config: number of timesteps, refinement, and the features' weights.
        progress: show a progress bar.

    Returns:
        The weighted average of the features [1, C, h', w'] in float32, and the last latents.
    """
    timesteps = inversion_timesteps(config.steps, model.training_steps, model.offset)
    ratio = model.training_steps // config.steps
    weights = time_weights(config.steps, config.midpoint, config.sharpness)
    mix: Tensor | None = None
    for weight, timestep in zip(
        weights.tolist(),
        tqdm(timesteps, desc="inversion", unit="step", leave=False, disable=not progress),
        strict=True,
    ):
        before, start = max(0, timestep - ratio), latent
        for _ in range(1 + config.refine):
            prediction, features = predict(latent, timestep)
            latent = model.move(start, prediction.float(), before, timestep)
        part = weight * features.float()
        mix = part if mix is None else mix + part
    assert mix is not None
    return mix, latent


@torch.no_grad()
def sample(
    latent: Tensor, predict: Predict, model: GalleryModel, timesteps: Sequence[int], ratio: int
) -> Tensor:
    """Reverse of `invert`: the sampler from the last of ascending timesteps to the image."""
    for timestep in reversed(timesteps):
        prediction, _ = predict(latent, timestep)
        latent = model.move(latent, prediction.float(), timestep, max(0, timestep - ratio))
    return latent


class DiffusionFeatures:
    """The features of StyleGallery; `fingerprint` changes whenever they would.

    Args:
        model: the diffusion model.
        config: timesteps, block, weights.
        progress: show progress bars.

    Raises:
        UserError: the model has no such block.
    """

    def __init__(self, model: GalleryModel, config: FeatureConfig, progress: bool = True) -> None:
        blocks = len(model.blocks())
        self._block = model.usual_block if config.block is None else config.block
        if self._block >= blocks:
            raise UserError(f"features.block is {config.block}: this model has {blocks} blocks")
        self.model, self.config, self._progress = model, config, progress
        self.fingerprint = settings_hash([model.fingerprint, config])

    def describe(self, image: Tensor) -> ImageFeatures:
        """Invert an image [3, H, W] in [0, 1]; results are float32 on the CPU."""
        latent = self.model.encode(image)
        with self.model.working(), self.model.reading(self._block, latent) as predict:
            mix, inverted = invert(latent, predict, self.model, self.config, self._progress)
        size = (latent.shape[-2], latent.shape[-1])
        mix = torch.nn.functional.interpolate(mix, size, mode="nearest")
        return ImageFeatures(mix[0].cpu(), latent[0].cpu(), inverted[0].cpu())

    @property
    def last_timestep(self) -> int:
        """The noise level of the inverted latents."""
        model = self.model
        return inversion_timesteps(self.config.steps, model.training_steps, model.offset)[-1]
