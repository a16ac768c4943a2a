"""Looks in closed arithmetic for photos, beside the laboratory's four (`filters`).

They are kept apart because the synthetic scenes and the embedded base know exactly those four.
Every filter takes a picture [3, H, W] in [0, 1] and returns one of the same shape; lengths scale
with the shorter side.
"""

import torch
from torch import Tensor

from pseudo_labels.stylize.filters import (
    Filter,
    _blur,
    _contrast,
    _edges,
    _gradient_map,
    _kuwahara,
    _luma,
    _radius,
    _saturate,
)


def posterised(image: Tensor) -> Tensor:
    """Screen print: five flat tones a channel, saturated, with dark outlines.

    Args:
        image: picture [3, H, W] in [0, 1].

    Returns:
        Styled picture [3, H, W] in [0, 1].
    """
    flat = _kuwahara(image, _radius(image, 0.8))
    vivid = _saturate(_contrast(flat, 1.2), 1.8).clamp(0, 1)
    tones = _steps(vivid, 4)
    outline = ((_edges(_blur(flat, 0.4)) - 0.22) / 0.2).clamp(0, 1)
    return (tones * (1 - 0.85 * outline)).clamp(0, 1)


def neon(image: Tensor) -> Tensor:
    """Neon tubes in the dark: glowing outlines in the colours of what they go round.

    Args:
        image: picture [3, H, W] in [0, 1].

    Returns:
        Styled picture [3, H, W] in [0, 1].
    """
    soft = _blur(image, 0.5)
    tube = ((_edges(soft) - 0.08) / 0.25).clamp(0, 1)
    hue = _saturate(_blur(image, 1.0), 4.0)
    hue = (hue - hue.amin(0, keepdim=True)) / (
        hue.amax(0, keepdim=True) - hue.amin(0, keepdim=True) + 0.08
    )
    hue = 0.25 + 0.75 * hue
    glow = _blur(tube * hue, 1.6)
    dark = 0.16 * _blur(image, 0.8).square() * image.new_tensor([0.7, 0.6, 1.6])[:, None, None]
    core = (tube**3).expand_as(hue) * 0.5
    return (dark + tube * hue + 0.9 * glow + core).clamp(0, 1)


def blueprint(image: Tensor) -> Tensor:
    """White lines on blue drafting paper, shaded a little by the photo's tones.

    Args:
        image: picture [3, H, W] in [0, 1].

    Returns:
        Styled picture [3, H, W] in [0, 1].
    """
    paper = image.new_tensor([0.04, 0.20, 0.52])[:, None, None]
    shade = 0.75 + 0.5 * _steps(_luma(_blur(image, 0.6)), 4)
    line = ((_edges(_blur(image, 0.5)) - 0.08) / 0.22).clamp(0, 1)
    return (paper * shade * (1 - line) + 0.95 * line).clamp(0, 1)


def risograph(image: Tensor) -> Tensor:
    """Two inks on cream paper, warm red in the lights' shadows and deep green in the dark, dotted.

    Args:
        image: picture [3, H, W] in [0, 1].

    Returns:
        Styled picture [3, H, W] in [0, 1].
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
    tone = _contrast(_luma(_blur(image, 0.3)), 1.25)
    return _gradient_map((tone + 0.22 * _dots(image)).clamp(0, 1), stops)


PHOTO_FILTERS: dict[str, Filter] = {
    "posterised": posterised,
    "neon": neon,
    "blueprint": blueprint,
    "risograph": risograph,
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
