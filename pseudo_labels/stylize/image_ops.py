"""Image arithmetic that the exact filters share.

Images are [C, H, W]. Lengths are given for an image whose shorter side is 64 px and scale with it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def luma(image: Tensor) -> Tensor:
    """Brightness [1, H, W] of an RGB image."""
    return (image * image.new_tensor(_LUMA)[:, None, None]).sum(0, keepdim=True)


def contrast(image: Tensor, factor: float) -> Tensor:
    """Distances to mid grey times `factor`."""
    return 0.5 + (image - 0.5) * factor


def saturate(image: Tensor, factor: float) -> Tensor:
    """Distances to the grey of the same brightness times `factor`."""
    grey = luma(image)
    return grey + (image - grey) * factor


def radius(image: Tensor, at_64: float) -> int:
    """A length of a 64-px image in whole pixels of this one, at least one."""
    return max(1, round(at_64 * min(image.shape[-2:]) / 64))


def blur(image: Tensor, sigma_at_64: float) -> Tensor:
    """Separable Gaussian blur with replicated borders; sigma in pixels of a 64-px image."""
    sigma = sigma_at_64 * min(image.shape[-2:]) / 64
    reach = min(max(1, round(3 * sigma)), min(image.shape[-2:]) - 1)
    taps = torch.arange(-reach, reach + 1, dtype=image.dtype, device=image.device)
    kernel = torch.exp(-0.5 * (taps / sigma).square())
    kernel = (kernel / kernel.sum()).repeat(image.shape[0], 1)
    padded = F.pad(image[None], (reach, reach, reach, reach), mode="replicate")
    rows = F.conv2d(padded, kernel[:, None, :, None], groups=image.shape[0])
    return F.conv2d(rows, kernel[:, None, None, :], groups=image.shape[0])[0]


def edges(image: Tensor) -> Tensor:
    """Colour-gradient magnitude [1, H, W]; 1 is a full black-to-white step over one 64-px pixel."""
    unit = radius(image, 1.0)
    padded = F.pad(image[None], (unit, unit, unit, unit), mode="replicate")[0]
    height, width = image.shape[-2:]
    dx = padded[:, unit : unit + height, 2 * unit :] - padded[:, unit : unit + height, :width]
    dy = padded[:, 2 * unit :, unit : unit + width] - padded[:, :height, unit : unit + width]
    return (dx.square() + dy.square()).amax(0, keepdim=True).sqrt()


def gradient_map(tone: Tensor, stops: Tensor) -> Tensor:
    """Piecewise-linear colour ramp: tone [1, H, W] in [0, 1], stops [S, 3] -> [3, H, W]."""
    position = tone * (len(stops) - 1)
    lower = position.floor().clamp(max=len(stops) - 2).long()
    mix = position - lower
    low, high = stops[lower[0]], stops[lower[0] + 1]  # (H, W, 3)
    return (low + (high - low) * mix[0, ..., None]).permute(2, 0, 1)


def kuwahara(image: Tensor, radius: int) -> Tensor:
    """Kuwahara smoothing: each pixel takes the mean of the smoothest of its four corner windows."""
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
    # A soft choice instead of arg-min: rounding errors then cannot flip ties between corners.
    weights = torch.softmax(-spreads / 2e-3, dim=0)
    return (means * weights).sum(0)
