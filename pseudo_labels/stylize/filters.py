"""Exact style filters of the synthetic scenes: four styles in closed form, without weights.

They are ground truth: the same image always gives the same target, so the error of an edit can be
measured against the exactly styled object. Every filter takes an image [3, H, W] in [0, 1] and
returns one of the same shape. Lengths scale with the shorter side, so a style is the same at 64 and
at 1024 px. Nothing is random, and nothing is composited here.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

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

Filter = Callable[[Tensor], Tensor]

# Part of fingerprints; change it whenever the output of a filter changes.
REVISION = "4591ce4199d9c1ae"


def pixel_art(image: Tensor) -> Tensor:
    """Chunky cells in a small vivid palette (4 levels per channel).

    32 cells along the shorter side, but no cell is smaller than 4 px: it would not read as a pixel.

    Args:
        image: [3, H, W] in [0, 1].

    Returns:
        Styled image [3, H, W] in [0, 1].
    """
    height, width = image.shape[-2:]
    cell = max(4, round(min(height, width) / 32))
    padded = F.pad(image[None], (0, -width % cell, 0, -height % cell), mode="replicate")
    cells = F.avg_pool2d(padded, cell)
    vivid = saturate(contrast(cells[0], 1.35), 1.7).clamp(0, 1)
    palette = (vivid * 3).round() / 3
    blocks = palette.repeat_interleave(cell, dim=-2).repeat_interleave(cell, dim=-1)
    return blocks[:, :height, :width].contiguous()


def line_art(image: Tensor) -> Tensor:
    """Dark ink lines where brightness or colour changes, on white paper.

    Args:
        image: [3, H, W] in [0, 1].

    Returns:
        Styled image [3, H, W] in [0, 1], grey.
    """
    ink = ((edges(blur(image, 0.8)) - 0.10) / 0.25).clamp(0, 1)
    paper = 0.94 + 0.06 * luma(image)
    return (paper * (1 - 0.92 * ink)).expand(3, -1, -1).clamp(0, 1).contiguous()


def cyberpunk(image: Tensor) -> Tensor:
    """Night-city duotone: indigo shadows, magenta mid-tones, cyan lights, and glowing outlines.

    Args:
        image: [3, H, W] in [0, 1].

    Returns:
        Styled image [3, H, W] in [0, 1].
    """
    stops = image.new_tensor(
        [[0.03, 0.00, 0.16], [0.34, 0.00, 0.52], [0.98, 0.10, 0.66], [0.25, 0.92, 1.00]]
    )
    tone = contrast(luma(blur(image, 0.6)), 1.3).clamp(0, 1)
    duotone = gradient_map(tone, stops)
    glow = blur(((edges(blur(image, 0.8)) - 0.15) / 0.45).clamp(0, 1), 1.0)
    neon = image.new_tensor([0.15, 1.0, 0.95])[:, None, None]
    return (duotone + (neon - duotone) * 0.85 * glow).clamp(0, 1)


def expressionist(image: Tensor) -> Tensor:
    """Flat bold strokes: smoothed areas, exaggerated colour, blue shadows, orange lights, outlines.

    Args:
        image: [3, H, W] in [0, 1].

    Returns:
        Styled image [3, H, W] in [0, 1].
    """
    strokes = kuwahara(image, radius(image, 2.0))
    bold = saturate(contrast(strokes, 1.5), 2.2)
    shadow = image.new_tensor([0.02, 0.10, 0.55])[:, None, None]
    light = image.new_tensor([1.00, 0.72, 0.10])[:, None, None]
    tone = luma(strokes)
    toned = (
        bold + 0.55 * (1 - tone).square() * (shadow - bold) + 0.55 * tone.square() * (light - bold)
    )
    outline = ((edges(strokes) - 0.25) / 0.5).clamp(0, 1)
    return (toned * (1 - 0.8 * outline)).clamp(0, 1)


FILTERS: dict[str, Filter] = {
    "pixel-art": pixel_art,
    "line-art": line_art,
    "cyberpunk": cyberpunk,
    "expressionist": expressionist,
}
