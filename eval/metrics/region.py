"""Pixel measures inside and outside the edited object.

All functions are pure, take float32 images [B,3,H,W] in [0,1] and masks [B,1,H,W] in {0,1}, and
return [B]. Where a sample has no background (or no object) its value is NaN, never 0.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from regionroute.data.region_scores import in_mask_ratio, masked_mean, squared_error

CHANGE_THRESHOLD = 0.1  # a pixel counts as changed above this, largest channel, [0,1] range
BAND_SHARE = 0.02  # width of the boundary band as a share of the shorter side
SUCCESS_RATIO = 0.5  # an edit succeeds when its residual error is below this


def boundary_band(mask: Tensor) -> Tensor:
    """The background next to the object: [B,1,H,W] in {0,1}.

    Every background pixel within r rows and columns of the mask [B,1,H,W], r being 2 % of the
    shorter side, rounded, at least 1.
    """
    radius = max(1, round(BAND_SHARE * min(mask.shape[2:])))
    # Rows, then columns: the same square at a fraction of the work.
    grown = F.max_pool2d(mask.float(), (2 * radius + 1, 1), stride=1, padding=(radius, 0))
    grown = F.max_pool2d(grown, (1, 2 * radius + 1), stride=1, padding=(0, radius))
    return grown - mask.float()


def boundary_error(output: Tensor, content: Tensor, mask: Tensor) -> Tensor:
    """`mse_bg` on the boundary band alone, where seams and halos are: [B]; NaN without a band."""
    return masked_mean(squared_error(output, content), boundary_band(mask))


def success(output: Tensor, content: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """1 where `in_mask_ratio` is below .5, else 0, NaN where the ratio is NaN: [B]."""
    ratio = in_mask_ratio(output, content, target, mask)
    return torch.where(ratio.isnan(), ratio, (ratio < SUCCESS_RATIO).float())


def leak(output: Tensor, content: Tensor, mask: Tensor) -> Tensor:
    """Share of background pixels that changed by more than `CHANGE_THRESHOLD`: [B]."""
    return masked_mean(_changed(output, content), 1 - mask)


def coverage(output: Tensor, content: Tensor, mask: Tensor) -> Tensor:
    """Share of the object's pixels that changed by more than `CHANGE_THRESHOLD`: [B]."""
    return masked_mean(_changed(output, content), mask)


def _changed(output: Tensor, content: Tensor) -> Tensor:
    """1 where a pixel's largest channel difference is above `CHANGE_THRESHOLD`: [B,1,H,W]."""
    if output.shape != content.shape:
        raise ValueError(f"images differ in shape: {output.shape} and {content.shape}")
    difference = (output.float() - content.float()).abs().amax(1, keepdim=True)
    return torch.where(difference.isnan(), difference, (difference > CHANGE_THRESHOLD).float())
