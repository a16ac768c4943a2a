"""Exact style filters: four looks in closed arithmetic, without any weights.

They are the laboratory's ground truth: the same picture always gives the same target, so the error
of an edit can be measured against the *exact* styled object. Every filter takes a picture
[3, H, W] in [0, 1] and returns one of the same shape; lengths scale with the shorter side, so that
a look is the same at 64 and at 1024 px. Nothing is random and nothing is composited here.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Filter = Callable[[Tensor], Tensor]

_LUMA = (0.299, 0.587, 0.114)


def pixel_art(image: Tensor) -> Tensor:
    """Chunky cells in a small vivid palette (4 levels a channel).

    32 cells along the shorter side, but never cells under 4 px: they would not read as pixels.

    Args:
        image: picture [3, H, W] in [0, 1].

    Returns:
        Styled picture [3, H, W] in [0, 1].
    """
    height, width = image.shape[-2:]
    cell = max(4, round(min(height, width) / 32))
    padded = F.pad(image[None], (0, -width % cell, 0, -height % cell), mode="replicate")
    cells = F.avg_pool2d(padded, cell)
    vivid = _saturate(_contrast(cells[0], 1.35), 1.7).clamp(0, 1)
    palette = (vivid * 3).round() / 3
    blocks = palette.repeat_interleave(cell, dim=-2).repeat_interleave(cell, dim=-1)
    return blocks[:, :height, :width].contiguous()


def line_art(image: Tensor) -> Tensor:
    """Dark ink lines where brightness or colour changes, on white paper.

    Args:
        image: picture [3, H, W] in [0, 1].

    Returns:
        Styled picture [3, H, W] in [0, 1], grey.
    """
    ink = ((_edges(_blur(image, 0.8)) - 0.10) / 0.25).clamp(0, 1)
    paper = 0.94 + 0.06 * _luma(image)
    return (paper * (1 - 0.92 * ink)).expand(3, -1, -1).clamp(0, 1).contiguous()


def cyberpunk(image: Tensor) -> Tensor:
    """Night-city duotone: indigo shadows, magenta mid-tones, cyan lights, and glowing outlines.

    Args:
        image: picture [3, H, W] in [0, 1].

    Returns:
        Styled picture [3, H, W] in [0, 1].
    """
    stops = image.new_tensor(
        [[0.03, 0.00, 0.16], [0.34, 0.00, 0.52], [0.98, 0.10, 0.66], [0.25, 0.92, 1.00]]
    )
    tone = _contrast(_luma(_blur(image, 0.6)), 1.3).clamp(0, 1)
    duotone = _gradient_map(tone, stops)
    glow = _blur(((_edges(_blur(image, 0.8)) - 0.15) / 0.45).clamp(0, 1), 1.0)
    neon = image.new_tensor([0.15, 1.0, 0.95])[:, None, None]
    return (duotone + (neon - duotone) * 0.85 * glow).clamp(0, 1)


def expressionist(image: Tensor) -> Tensor:
    """Flat bold strokes: smoothed areas, exaggerated colour, blue shadows, orange lights, outlines.

    Args:
        image: picture [3, H, W] in [0, 1].

    Returns:
        Styled picture [3, H, W] in [0, 1].
    """
    strokes = _kuwahara(image, _radius(image, 2.0))
    bold = _saturate(_contrast(strokes, 1.5), 2.2)
    shadow = image.new_tensor([0.02, 0.10, 0.55])[:, None, None]
    light = image.new_tensor([1.00, 0.72, 0.10])[:, None, None]
    tone = _luma(strokes)
    toned = (
        bold + 0.55 * (1 - tone).square() * (shadow - bold) + 0.55 * tone.square() * (light - bold)
    )
    outline = ((_edges(strokes) - 0.25) / 0.5).clamp(0, 1)
    return (toned * (1 - 0.8 * outline)).clamp(0, 1)


FILTERS: dict[str, Filter] = {
    "pixel-art": pixel_art,
    "line-art": line_art,
    "cyberpunk": cyberpunk,
    "expressionist": expressionist,
}


def _luma(image: Tensor) -> Tensor:
    """Brightness [1, H, W] (ITU-R BT.601)."""
    return (image * image.new_tensor(_LUMA)[:, None, None]).sum(0, keepdim=True)


def _contrast(image: Tensor, factor: float) -> Tensor:
    return 0.5 + (image - 0.5) * factor


def _saturate(image: Tensor, factor: float) -> Tensor:
    grey = _luma(image)
    return grey + (image - grey) * factor


def _radius(image: Tensor, at_64: float) -> int:
    """A length given for a 64-px picture, in whole pixels of this one (at least one)."""
    return max(1, round(at_64 * min(image.shape[-2:]) / 64))


def _blur(image: Tensor, sigma_at_64: float) -> Tensor:
    """Separable Gaussian blur with replicated borders; sigma in pixels of a 64-px picture."""
    sigma = sigma_at_64 * min(image.shape[-2:]) / 64
    reach = min(max(1, round(3 * sigma)), min(image.shape[-2:]) - 1)
    taps = torch.arange(-reach, reach + 1, dtype=image.dtype, device=image.device)
    kernel = torch.exp(-0.5 * (taps / sigma).square())
    kernel = (kernel / kernel.sum()).repeat(image.shape[0], 1)
    padded = F.pad(image[None], (reach, reach, reach, reach), mode="replicate")
    rows = F.conv2d(padded, kernel[:, None, :, None], groups=image.shape[0])
    return F.conv2d(rows, kernel[:, None, None, :], groups=image.shape[0])[0]


def _edges(image: Tensor) -> Tensor:
    """Colour-gradient magnitude [1, H, W]; 1 is a full black-to-white step over one 64-px pixel."""
    unit = _radius(image, 1.0)
    padded = F.pad(image[None], (unit, unit, unit, unit), mode="replicate")[0]
    height, width = image.shape[-2:]
    dx = padded[:, unit : unit + height, 2 * unit :] - padded[:, unit : unit + height, :width]
    dy = padded[:, 2 * unit :, unit : unit + width] - padded[:, :height, unit : unit + width]
    return (dx.square() + dy.square()).amax(0, keepdim=True).sqrt()


def _gradient_map(tone: Tensor, stops: Tensor) -> Tensor:
    """Piecewise-linear colour ramp: tone [1, H, W] in [0, 1], stops [S, 3] -> [3, H, W]."""
    position = tone * (len(stops) - 1)
    lower = position.floor().clamp(max=len(stops) - 2).long()
    mix = position - lower
    low, high = stops[lower[0]], stops[lower[0] + 1]  # (H, W, 3)
    return (low + (high - low) * mix[0, ..., None]).permute(2, 0, 1)


def _kuwahara(image: Tensor, radius: int) -> Tensor:
    """Kuwahara smoothing: each pixel takes the mean of the calmest of its four corner windows."""
    size = radius + 1
    padded = F.pad(image[None], (radius, radius, radius, radius), mode="replicate")
    mean = F.avg_pool2d(padded, size, stride=1)
    spread = (F.avg_pool2d(padded.square(), size, stride=1) - mean.square()).sum(1, keepdim=True)
    height, width = image.shape[-2:]
    corners = [(top, left) for top in (0, radius) for left in (0, radius)]
    means = torch.cat(
        [mean[:, :, top : top + height, left : left + width] for top, left in corners]
    )  # (4, 3, H, W)
    spreads = torch.cat(
        [spread[:, :, top : top + height, left : left + width] for top, left in corners]
    )
    # A soft choice instead of arg-min: ties between corners then cannot flip on rounding noise.
    weights = torch.softmax(-spreads / 2e-3, dim=0)
    return (means * weights).sum(0)
