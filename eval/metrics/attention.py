"""Agreement of the style word's region map with the object's mask."""

import torch
from torch import Tensor
from torch.nn import functional as F

from regionroute.data.region_scores import map_iou, share_inside

MAP_LEVELS = 256  # a map file's value / 256 puts the boundary 128 exactly at .5


def attention_iou(region_map: Tensor, mask: Tensor) -> Tensor:
    """Intersection over union of (map > `MAP_BOUNDARY`) with the mask on the map's grid: [B].

    Args:
        region_map: [B,1,h,w] in [0,1].
        mask: [B,1,H,W] in {0,1}.

    Returns:
        [B] in [0,1], NaN for an empty mask.

    Raises:
        ValueError: the batch sizes differ.
    """
    if region_map.ndim != 4 or region_map.shape[:2] != (mask.shape[0], 1):
        raise ValueError(f"map {list(region_map.shape)} does not fit mask {list(mask.shape)}")
    part = F.adaptive_avg_pool2d(mask.float(), (region_map.shape[2], region_map.shape[3]))
    return map_iou(region_map[:, 0].float(), part[:, 0])


def attention_share(region_map: Tensor, mask: Tensor) -> Tensor:
    """Share of the image's attention that falls on the object: [B].

    A region map is r = M / (M + b) with the attention b at its boundary (its mean, or that at which
    a gate is half open), so M / b = r / (1 - r); the attention M itself is not kept. A cell counts
    by the part of it that is object. Even attention gives the object's share of the image.

    Args:
        region_map: [B,1,h,w] in [0,1] as read from a map file, level / 256 of the level r x 255.
        mask: [B,1,H,W] in {0,1}.

    Returns:
        [B] in [0,1], NaN for an empty mask or a map of zeros.

    Raises:
        ValueError: the batch sizes differ.
    """
    if region_map.ndim != 4 or region_map.shape[:2] != (mask.shape[0], 1):
        raise ValueError(f"map {list(region_map.shape)} does not fit mask {list(mask.shape)}")
    height, width = region_map.shape[2:]
    ratio = (region_map.double() * MAP_LEVELS / (MAP_LEVELS - 1)).clamp(0, 1)
    # No cell has more than all attention, as many times the mean as there are cells.
    attention = (ratio / (1 - ratio)).clamp(max=height * width)
    part = F.adaptive_avg_pool2d(mask.double(), (height, width))
    share = share_inside(attention[:, 0], part[:, 0])
    return torch.where(attention.sum((1, 2, 3)) > 0, share, torch.nan).float()
