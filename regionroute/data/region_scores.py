"""Scores of an edit or of an attention map against the object's mask, for training and evaluation.

All functions are pure. Where a sample lacks what a score needs (an object, a background) its value
is NaN, never 0.

Shape legend: B batch, H W pixels, h w cells of an attention map.
"""

import torch
from torch import Tensor

MAP_BOUNDARY = 0.5  # of a region map: the Cover loss decides here, and a gate is half open


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` [B,C,H,W] over all channels where `mask` [B,1,H,W] is 1.

    Returns:
        [B], NaN where the mask is empty.

    Raises:
        ValueError: the shapes do not fit.
    """
    if mask.ndim != 4 or mask.shape != (values.shape[0], 1, *values.shape[2:]):
        raise ValueError(f"mask {list(mask.shape)} does not fit images {list(values.shape)}")
    mask = mask.float()
    total = (values.float() * mask).sum((1, 2, 3))
    return total / (mask.sum((1, 2, 3)) * values.shape[1])  # 0/0 is NaN, as wanted


def squared_error(a: Tensor, b: Tensor) -> Tensor:
    """Squared difference of images [B,3,H,W] in [0,1], taken in [-1,1]: [B,3,H,W] in [0,4].

    Raises:
        ValueError: the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"images differ in shape: {list(a.shape)} and {list(b.shape)}")
    return (2 * (a.float() - b.float())).square()


def mse_bg(output: Tensor, content: Tensor, mask: Tensor) -> Tensor:
    """Background error, RegionRoute's MSE_bg: Σ(1−M)(x̂−x)² / (3Σ(1−M)), images in [-1,1].

    The paper states no range; its published values only make sense for [-1,1].

    Args:
        output: edited images x̂, [B,3,H,W] in [0,1].
        content: source images x, [B,3,H,W] in [0,1].
        mask: M, [B,1,H,W] in {0,1}, 1 on the object.

    Returns:
        [B] ≥ 0, NaN without background.
    """
    return masked_mean(squared_error(output, content), 1 - mask)


def in_mask_error(output: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Object error ΣM(x̂−y)² / (3ΣM) with images in [-1,1] and the exact target y: [B] ≥ 0."""
    return masked_mean(squared_error(output, target), mask)


def in_mask_ratio(output: Tensor, content: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Residual error: the object error of the edit over that of the source image.

    Returns:
        [B] ≥ 0. 0 is the exact target, 1 as far from it as no edit at all. NaN where the target
        equals the source inside the mask, because then there is nothing to gain.
    """
    unedited = in_mask_error(content, target, mask)
    ratio = in_mask_error(output, target, mask) / unedited
    return torch.where(unedited > 0, ratio, torch.nan)


def edit_scores(edits: Tensor, sources: Tensor, targets: Tensor, masks: Tensor) -> dict[str, float]:
    """Means of `in_mask_ratio` and `mse_bg` over the samples that have them.

    Args:
        edits: [B,3,H,W] in [0,1].
        sources: unedited, [B,3,H,W] in [0,1].
        targets: exact, [B,3,H,W] in [0,1].
        masks: 1 on the object, [B,1,H,W] in {0,1}.

    Returns:
        "error_left" (the residual error) and "background_error"; one that no sample has is absent.
    """
    numbers = {
        "error_left": float(in_mask_ratio(edits, sources, targets, masks).nanmean()),
        "background_error": float(mse_bg(edits, sources, masks).nanmean()),
    }
    return {name: value for name, value in numbers.items() if value == value}  # no NaN


def object_cells(masks: Tensor) -> Tensor:
    """Which cells of soft masks [...,h,w] in [0,1] are object: bool [...,h,w].

    Cells at least half covered or, where there are none, all touched ones: a small object cannot
    vanish.
    """
    half = masks >= 0.5
    return torch.where(half.any(-1).any(-1)[..., None, None], half, masks > 0)


def map_iou(region_map: Tensor, masks: Tensor) -> Tensor:
    """Intersection over union of (region map > `MAP_BOUNDARY`) with the object on the map's grid.

    Args:
        region_map: [...,h,w] in [0,1].
        masks: soft masks on the same grid, broadcastable to it; see `object_cells`.

    Returns:
        [...] in [0,1], NaN for an empty mask.
    """
    wanted = object_cells(masks)
    found = region_map > MAP_BOUNDARY
    union = (found | wanted).sum((-2, -1))
    iou = (found & wanted).sum((-2, -1)) / union.clamp(min=1)
    return iou.masked_fill(~wanted.any(-1).any(-1), torch.nan)


def share_inside(attention: Tensor, masks: Tensor) -> Tensor:
    """Share of the attention that falls on the object.

    Args:
        attention: [...,h,w], >= 0.
        masks: soft masks on the same grid, broadcastable to it; a cell counts by its soft value.

    Returns:
        [...] in [0,1], NaN for an empty mask, 0 for attention that is 0 everywhere.
    """
    total = attention.sum((-2, -1))
    share = (attention * masks).sum((-2, -1)) / total.clamp(min=torch.finfo(total.dtype).tiny)
    return share.masked_fill(~(masks > 0).any(-1).any(-1), torch.nan)
