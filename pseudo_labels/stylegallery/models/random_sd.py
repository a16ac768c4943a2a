"""A small Stable Diffusion of the real classes with random weights, for dry runs."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TEXT_WIDTH = 32
RANDOM_WIDTHS = (32, 64, 64, 64)


@dataclass(frozen=True)
class RandomParts:
    """Parts of a Stable Diffusion model with random weights.

    Attributes:
        unet: UNet2DConditionModel.
        vae: AutoencoderKL.
        text: in place of the embedded empty prompt, [1, 8, TEXT_WIDTH].
        scheduler: DDIMScheduler.
    """

    unet: Any
    vae: Any
    text: Tensor
    scheduler: Any


def random_parts() -> RandomParts:
    """Build the parts; the weights are the same each time."""
    from diffusers import DDIMScheduler

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet, vae = random_unet(), _vae()
        text = torch.randn(1, 8, TEXT_WIDTH)
    return RandomParts(unet, vae, text, DDIMScheduler(**scheduler_settings()))


def scheduler_settings() -> dict[str, Any]:
    """The noise schedule of Stable Diffusion 1.5."""
    return {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }


def random_unet(widths: tuple[int, ...] = RANDOM_WIDTHS, heads: int = 4) -> Any:
    """A random UNet with the layers of Stable Diffusion 1.5; `widths`: channels of its stages."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        block_out_channels=widths,
        layers_per_block=2,
        in_channels=4,
        out_channels=4,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=heads,
        norm_num_groups=8,
        sample_size=64,
    )
    # Random queries and keys attend almost uniformly; scale them up for a useful test.
    for name, weight in unet.named_parameters():
        if name.endswith(("attn1.to_q.weight", "attn1.to_k.weight")):
            weight.data.mul_(3)
    return unet


def _vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    )
