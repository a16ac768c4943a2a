"""Does the style word look at the object? Overlap of the region map with the mask."""

import torch
from torch import Tensor
from torch.nn import functional as F

MAP_BOUNDARY = 0.5  # the Cover loss decides here: attention equal to its mean over the picture


def mask_on_grid(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """The mask at the map's resolution: 1 where at least half of a cell is object.

    An object too small for that in every cell takes the cells it touches, so it cannot vanish.

    Args:
        mask: [B,1,H,W] in {0,1}.
        grid: (h, w).

    Returns:
        [B,1,h,w] in {0,1}; all 0 only where the mask itself is empty.
    """
    half = (F.adaptive_avg_pool2d(mask.float(), grid) >= 0.5).float()
    touched = (F.adaptive_max_pool2d(mask.float(), grid) > 0).float()
    vanished = half.sum((1, 2, 3), keepdim=True) == 0
    return torch.where(vanished, touched, half)


def attention_iou(region_map: Tensor, mask: Tensor, boundary: float = MAP_BOUNDARY) -> Tensor:
    """Intersection over union of (map > boundary) with the mask on the map's grid: [B].

    Args:
        region_map: [B,1,h,w] in [0,1].
        mask: [B,1,H,W] in {0,1}.
        boundary: map values above it count as "on the object".

    Returns:
        [B] in [0,1], NaN for an empty mask.

    Raises:
        ValueError: the batch sizes differ.
    """
    if region_map.ndim != 4 or region_map.shape[:2] != (mask.shape[0], 1):
        raise ValueError(f"map {list(region_map.shape)} does not fit mask {list(mask.shape)}")
    inside = region_map.float() > boundary
    cells = mask_on_grid(mask, (region_map.shape[2], region_map.shape[3])) > 0
    both = (inside & cells).sum((1, 2, 3)).float()
    either = (inside | cells).sum((1, 2, 3)).float()
    return torch.where(cells.any(3).any(2).any(1), both / either, torch.nan)
