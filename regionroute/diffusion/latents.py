"""Latents of a Kontext model: scaling, packing into tokens, and position ids.

Shape legend: B batch, C latent channels, H W pixels, h w latent rows and columns
(H / vae scale), N = (h/2)(w/2) image tokens, T text tokens, S (object, style) pairs.
Each function restates one step of ``FluxKontextPipeline`` (diffusers); tests compare them with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

TARGET_FRAME = 0
CONTEXT_FRAME = 1  # 0 in the released trainer, which disagrees with its own inference


def pack(latents: Tensor) -> Tensor:
    """Turns 2x2 patches of latents into tokens.

    Args:
        latents: [B,C,h,w] with even h and w.

    Returns:
        [B,(h/2)(w/2),4C], rows first: einops ``b c (h p) (w q) -> b (h w) (c p q)``.

    Raises:
        ValueError: h or w is odd.
    """
    batch, channels, height, width = latents.shape
    if height % 2 or width % 2:
        raise ValueError(f"latents of {height}x{width} cannot be packed: both sides must be even")
    patches = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(
        batch, (height // 2) * (width // 2), 4 * channels
    )


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of :func:`pack`.

    Args:
        tokens: [B,(h/2)(w/2),4C].
        height: h, rows of the latents (not of the image).
        width: w, columns of the latents.

    Returns:
        [B,C,h,w].
    """
    batch, _, width_4c = tokens.shape
    channels = width_4c // 4
    patches = tokens.reshape(batch, height // 2, width // 2, channels, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, height, width)


def image_ids(h_tokens: int, w_tokens: int, frame: int) -> Tensor:
    """Position ids (frame, row, column) of an image's tokens for the rotary embedding.

    Args:
        h_tokens: rows of tokens, h/2.
        w_tokens: columns of tokens, w/2.
        frame: 0 for the noisy target, 1 for the context image.

    Returns:
        [h_tokens * w_tokens, 3] float32. Float32 whatever the model's dtype: bfloat16 cannot
        distinguish positions above 256.
    """
    ids = torch.zeros(h_tokens, w_tokens, 3)
    ids[..., 0] = frame
    ids[..., 1] = torch.arange(h_tokens)[:, None]
    ids[..., 2] = torch.arange(w_tokens)[None, :]
    return ids.reshape(h_tokens * w_tokens, 3)


def text_ids(length: int) -> Tensor:
    """Position ids of text tokens: all zero, [T,3] float32."""
    return torch.zeros(length, 3)


def encode_images(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Images to scaled latents; the mode of the posterior, so the same each time.

    Args:
        vae: an ``AutoencoderKL``; gradients flow if its weights or ``images`` require them.
        images: [B,3,H,W] in [0,1], sides multiples of the vae's scale.

    Returns:
        (mode − shift) · scale, [B,C,h,w], in the vae's dtype.
    """
    posterior = vae.encode(images.to(vae.dtype) * 2 - 1).latent_dist
    return (posterior.mode() - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


def decode_latents(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Scaled latents to images.

    Args:
        vae: an ``AutoencoderKL``.
        latents: [B,C,h,w] as :func:`encode_images` gives them.

    Returns:
        [B,3,H,W] float32, clamped to [0,1].
    """
    unscaled = latents.to(vae.dtype) / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
    images = vae.decode(unscaled, return_dict=False)[0]
    return (images.float() * 0.5 + 0.5).clamp(0, 1)


def mask_to_grid(masks: Tensor, h_tokens: int, w_tokens: int) -> Tensor:
    """Object masks on the grid of image tokens, as the part of each cell that the object covers.

    Area averaging keeps thin objects that nearest-neighbour sampling loses: its
    windows cover every pixel, so a mask with any pixel set has a positive sum here too.

    Args:
        masks: [...,1,H,W] in {0,1}, usually [B,S,1,H,W] or [S,1,H,W].
        h_tokens: rows of tokens.
        w_tokens: columns of tokens.

    Returns:
        [...,h_tokens,w_tokens] float32 in [0,1].
    """
    *lead, _, height, width = masks.shape
    flat = masks.reshape(-1, 1, height, width).float()
    if flat.shape[0] == 0:
        return flat.new_zeros(*lead, h_tokens, w_tokens)
    return F.adaptive_avg_pool2d(flat, (h_tokens, w_tokens)).reshape(*lead, h_tokens, w_tokens)
