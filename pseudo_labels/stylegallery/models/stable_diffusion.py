"""Stable Diffusion 1.x and 2.x, which predict noise.

With `offload`, parts are on the GPU only while they run: 512 px in bfloat16 then fits in 8 GB.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pseudo_labels.stylegallery.models.attention import (
    Recorded,
    recording,
    self_attention_layers,
)
from pseudo_labels.stylegallery.models.base import RANDOM, GalleryModel
from pseudo_labels.stylegallery.models.random_sd import RANDOM_WIDTHS, random_parts
from regionroute.files import settings_hash


@dataclass
class StableDiffusion(GalleryModel):
    """Frozen parts of a Stable Diffusion model.

    Attributes:
        unet: predicts noise.
        vae: images to latents and back, always in float32.
        text: the empty prompt's embedding [1, L, D].
        alphas: ᾱ of all training timesteps, [1000] in float64.
        offset: the scheduler's first timestep.
        fingerprint: changes with the weights.
        device: where they run.
        offload: move parts back to CPU memory when they are idle.
        random: whether the weights are random, for dry runs.
        name: folder or hub id, with the commit that was loaded.
    """

    unet: Any
    vae: Any
    text: Tensor
    alphas: Tensor
    offset: int
    fingerprint: str
    device: torch.device
    offload: bool = False
    random: bool = False
    name: str = RANDOM

    def __post_init__(self) -> None:
        self.training_steps, self.resolution = len(self.alphas), 512
        for part in (self.unet, self.vae):
            part.eval().requires_grad_(False)
            if not self.offload:
                part.to(self.device)
        self.text = self.text.to(self.device)

    @contextlib.contextmanager
    def at_work(self, part: Any) -> Iterator[Any]:
        """Move a part to the device for the duration of the block."""
        part.to(self.device)
        try:
            yield part
        finally:
            if self.offload:
                part.to("cpu")
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()

    @property
    def factor(self) -> int:
        """Side of a latent cell in pixels."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """Mode of the latents [1, c, h, w], in float32, of an image [3, H, W] in [0, 1]."""
        with self.at_work(self.vae) as vae:
            found = vae.encode(image[None].to(self.device) * 2 - 1).latent_dist.mode()
        latents: Tensor = found.float() * vae.config.scaling_factor
        return latents

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """The image [3, H, W] in [0, 1] of latents [1, c, h, w]."""
        with self.at_work(self.vae) as vae:
            found = vae.decode(latents.float() / vae.config.scaling_factor).sample[0]
        image: Tensor = (found / 2 + 0.5).clamp(0, 1).float().cpu()
        return image

    @property
    def layers(self) -> int:
        """Number of self-attention layers."""
        return len(self_attention_layers(self.unet))

    def blocks(self) -> Sequence[Any]:
        """The up-blocks."""
        return list(self.unet.up_blocks)

    @property
    def usual_block(self) -> int:
        """The last up-block but one."""
        return max(0, len(self.unet.up_blocks) - 2)

    def feature_map(self, output: object, latents: Tensor) -> Tensor:
        """An up-block's output is a map already."""
        assert isinstance(output, Tensor)
        return output

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Keeps the UNet on the device."""
        with self.at_work(self.unet):
            yield

    def predict(self, latents: Tensor, timestep: int, clean: Tensor) -> Tensor:
        """The predicted noise."""
        return self._forward(latents, timestep).sample.float()

    def move(self, latents: Tensor, prediction: Tensor, timestep: int, target: int) -> Tensor:
        """A DDIM step."""
        now, after = float(self.alphas[timestep]), float(self.alphas[target])
        return ddim_move(latents, prediction, now, after)

    def noised(self, clean: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """√ᾱ z + √(1−ᾱ) ε."""
        level = float(self.alphas[timestep])
        noised: Tensor = level**0.5 * clean + (1 - level) ** 0.5 * noise
        return noised

    def record(
        self,
        latents: Tensor,
        timestep: int,
        clean: Tensor,
        layers: Sequence[int],
        inputs_only: bool = False,
    ) -> Recorded:
        """Self-attention of the UNet, see `GalleryModel.record`."""
        every = self_attention_layers(self.unet)
        with recording([every[number] for number in layers], inputs_only) as record:
            self._forward(latents, timestep)
        return record

    def _forward(self, latents: Tensor, timestep: int) -> Any:
        dtype = next(self.unet.parameters()).dtype
        text = self.text.to(dtype).expand(len(latents), -1, -1)
        return self.unet(latents.to(dtype), timestep, encoder_hidden_states=text)


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


def random_model(device: torch.device | None = None) -> StableDiffusion:
    """A model with as many layers as Stable Diffusion 1.5, but narrow ones and random weights.

    Args:
        device: where the model runs, None for the CPU.

    Returns:
        The model, with `random` set.
    """
    parts = random_parts()
    return StableDiffusion(
        parts.unet,
        parts.vae,
        parts.text,
        parts.scheduler.alphas_cumprod.double(),
        parts.scheduler.config.steps_offset,
        settings_hash(["random", RANDOM_WIDTHS]),
        device or torch.device("cpu"),
        random=True,
    )
