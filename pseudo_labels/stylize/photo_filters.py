"""Exact style filters for photos, in addition to the four of the synthetic scenes (`filters`).

They are in a file of their own because the scenes and the embedded base know exactly those four.
Every filter takes an image [3, H, W] in [0, 1] and returns one of the same shape; lengths scale
with the shorter side.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pseudo_labels.stylize.filters import Filter
from pseudo_labels.stylize.image_ops import (
    blur,
    contrast,
    edges,
    gradient_map,
    kuwahara,
    luma,
    radius,
    saturate,
)

# Part of fingerprints; change it whenever the output of a filter changes.
REVISION = "efae675bc9db01f9"


def posterised(image: Tensor) -> Tensor:
    """Screen print: five flat tones per channel, saturated, with dark outlines.

    Args:
        image: [3, H, W] in [0, 1].

    Returns:
        Styled image [3, H, W] in [0, 1].
    """
    flat = kuwahara(image, radius(image, 0.8))
    vivid = saturate(contrast(flat, 1.2), 1.8).clamp(0, 1)
    tones = _steps(vivid, 4)
    outline = ((edges(blur(flat, 0.4)) - 0.22) / 0.2).clamp(0, 1)
    return (tones * (1 - 0.85 * outline)).clamp(0, 1)


def neon(image: Tensor) -> Tensor:
    """Neon tubes in the dark: glowing outlines in the objects' colours.

    Args:
        image: [3, H, W] in [0, 1].

    Returns:
        Styled image [3, H, W] in [0, 1].
    """
    soft = blur(image, 0.5)
    tube = ((edges(soft) - 0.08) / 0.25).clamp(0, 1)
    hue = saturate(blur(image, 1.0), 4.0)
    hue = (hue - hue.amin(0, keepdim=True)) / (
        hue.amax(0, keepdim=True) - hue.amin(0, keepdim=True) + 0.08
    )
    hue = 0.25 + 0.75 * hue
    glow = blur(tube * hue, 1.6)
    dark = 0.16 * blur(image, 0.8).square() * image.new_tensor([0.7, 0.6, 1.6])[:, None, None]
    core = (tube**3).expand_as(hue) * 0.5
    return (dark + tube * hue + 0.9 * glow + core).clamp(0, 1)


def blueprint(image: Tensor) -> Tensor:
    """White lines on blue drafting paper, shaded slightly by the photo's tones.

    Args:
        image: [3, H, W] in [0, 1].

    Returns:
        Styled image [3, H, W] in [0, 1].
    """
    paper = image.new_tensor([0.04, 0.20, 0.52])[:, None, None]
    shade = 0.75 + 0.5 * _steps(luma(blur(image, 0.6)), 4)
    line = ((edges(blur(image, 0.5)) - 0.08) / 0.22).clamp(0, 1)
    return (paper * shade * (1 - line) + 0.95 * line).clamp(0, 1)


def risograph(image: Tensor) -> Tensor:
    """Two inks in halftone dots on cream paper: warm red mid-tones, deep green shadows.

    Args:
        image: [3, H, W] in [0, 1].

    Returns:
        Styled image [3, H, W] in [0, 1].
    """
    stops = image.new_tensor(
        [
            [0.05, 0.22, 0.20],
            [0.10, 0.42, 0.38],
            [0.94, 0.34, 0.25],
            [0.98, 0.66, 0.50],
            [0.98, 0.94, 0.84],
        ]
    )
    tone = contrast(luma(blur(image, 0.3)), 1.25)
    return gradient_map((tone + 0.22 * _dots(image)).clamp(0, 1), stops)


def pop_art(image: Tensor) -> Tensor:
    """Four flat inks by tone, violet, pink, turquoise and yellow, with thin dark outlines.

    Args:
        image: [3, H, W] in [0, 1].

    Returns:
        Styled image [3, H, W] in [0, 1].
    """
    inks = image.new_tensor(
        [[0.22, 0.06, 0.42], [0.93, 0.18, 0.55], [0.16, 0.74, 0.76], [1.00, 0.89, 0.30]]
    )
    flat = kuwahara(image, radius(image, 1.2))
    tone = luma(flat)
    printed = inks[0][:, None, None].expand_as(image)
    for border, ink in zip((0.24, 0.46, 0.70), inks[1:], strict=True):
        above = ((tone - border) / 0.04 + 0.5).clamp(0, 1)  # a narrow ramp: edges do not alias
        printed = printed + above * (ink[:, None, None] - printed)
    outline = ((edges(blur(flat, 0.4)) - 0.25) / 0.25).clamp(0, 1)
    return (printed * (1 - 0.85 * outline)).clamp(0, 1)


def ink_drawing(image: Tensor) -> Tensor:
    """Fine ink lines on warm paper, hatched where it is dark.

    Args:
        image: [3, H, W] in [0, 1].

    Returns:
        Styled image [3, H, W] in [0, 1].
    """
    tone = luma(blur(image, 0.25))
    soft = blur(image, 0.12)
    line = ((_steps_between(soft, radius(image, 0.25)) - 0.05) / 0.13).clamp(0, 1)
    hatch = torch.zeros_like(tone)
    for darkness, direction in ((0.52, 1), (0.34, -1), (0.18, 0)):
        depth = ((darkness - tone) / 0.12).clamp(0, 1)
        hatch = torch.maximum(hatch, depth * _hatching(image, direction))
    ink = torch.maximum(line, 0.8 * hatch)
    paper = image.new_tensor([0.97, 0.95, 0.89])[:, None, None]
    black = image.new_tensor([0.09, 0.08, 0.14])[:, None, None]
    return (paper + (black - paper) * ink).clamp(0, 1)


def fine_pixel_art(image: Tensor) -> Tensor:
    """Pixel art with 72 cells along the shorter side; small objects keep their shape.

    Args:
        image: [3, H, W] in [0, 1].

    Returns:
        Styled image [3, H, W] in [0, 1], in a palette of 5 levels per channel.
    """
    height, width = image.shape[-2:]
    cell = max(4, round(min(height, width) / 72))
    padded = F.pad(image[None], (0, -width % cell, 0, -height % cell), mode="replicate")
    cells = F.avg_pool2d(padded, cell)[0]
    palette = _steps(saturate(contrast(cells, 1.25), 1.6), 4)
    blocks = palette.repeat_interleave(cell, dim=-2).repeat_interleave(cell, dim=-1)
    return blocks[:, :height, :width].contiguous()


PHOTO_FILTERS: dict[str, Filter] = {
    "posterised": posterised,
    "neon": neon,
    "blueprint": blueprint,
    "risograph": risograph,
    "ink-drawing": ink_drawing,
    "pop-art": pop_art,
    "fine-pixel-art": fine_pixel_art,
}


def _steps(image: Tensor, count: int) -> Tensor:
    """Values in [0, 1] rounded to `count` + 1 even tones."""
    return (image.clamp(0, 1) * count).round() / count


def _dots(image: Tensor) -> Tensor:
    """A halftone screen at 45 degrees [1, H, W] in [-0.5, 0.5]."""
    height, width = image.shape[-2:]
    pitch = max(4.0, min(height, width) / 80)
    y = torch.arange(height, dtype=image.dtype, device=image.device)[:, None]
    x = torch.arange(width, dtype=image.dtype, device=image.device)[None]
    turn = torch.pi / pitch * 2**0.5
    return (torch.cos((x + y) * turn / 2**0.5) * torch.cos((x - y) * turn / 2**0.5))[None] / 2


def _steps_between(image: Tensor, reach: int) -> Tensor:
    """Largest difference [1, H, W] of any channel between pixels `reach` apart on either side."""
    padded = F.pad(image[None], (reach,) * 4, mode="replicate")[0]
    height, width = image.shape[-2:]
    dx = padded[:, reach:-reach, 2 * reach :] - padded[:, reach:-reach, :width]
    dy = padded[:, 2 * reach :, reach:-reach] - padded[:, :height, reach:-reach]
    return (dx.square() + dy.square()).amax(0, keepdim=True).sqrt()


def _hatching(image: Tensor, direction: int) -> Tensor:
    """Parallel strokes [1, H, W] in [0, 1]: rising (1), falling (-1) or level (0)."""
    height, width = image.shape[-2:]
    pitch = max(4.0, min(height, width) / 90)
    y = torch.arange(height, dtype=image.dtype, device=image.device)[:, None]
    x = torch.arange(width, dtype=image.dtype, device=image.device)[None]
    across = y + 0 * x if direction == 0 else (x + direction * y) / 2**0.5
    return ((torch.cos(across * 2 * torch.pi / pitch) - 0.1) * 1.6).clamp(0, 1)[None]
