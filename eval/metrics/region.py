"""Pixel measures inside and outside the edited object.

All functions are pure, take float32 pictures [B,3,H,W] in [0,1] and masks [B,1,H,W] in {0,1}, and
return [B]. Where a sample has no background (or no object) its value is NaN, never 0.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

CHANGE_THRESHOLD = 0.1  # a pixel counts as changed above this, largest channel, [0,1] range
BAND_SHARE = 0.02  # width of the boundary band as a share of the shorter side
SUCCESS_RATIO = 0.5  # an edit succeeds when less than this share of the unedited error is left


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` [B,C,H,W] over all channels where `mask` [B,1,H,W] is 1: [B].

    NaN where the mask is empty.

    Raises:
        ValueError: the shapes do not go together.
    """
    if mask.ndim != 4 or mask.shape != (values.shape[0], 1, *values.shape[2:]):
        raise ValueError(f"mask {list(mask.shape)} does not fit pictures {list(values.shape)}")
    mask = mask.float()
    total = (values.float() * mask).sum((1, 2, 3))
    return total / (mask.sum((1, 2, 3)) * values.shape[1])  # 0/0 is NaN, as wanted


def mse_bg(output: Tensor, content: Tensor, mask: Tensor) -> Tensor:
    """Σ(1−M)(x̂−x)² / (3Σ(1−M)) with pictures in [-1,1] (RegionRoute §9): [B].

    Args:
        output: edited pictures x̂, [B,3,H,W] in [0,1].
        content: unedited pictures x, [B,3,H,W] in [0,1].
        mask: M, [B,1,H,W], 1 on the object.
    """
    return masked_mean(_squared_error(output, content), 1 - mask)


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
    return masked_mean(_squared_error(output, content), boundary_band(mask))


def in_mask_error(output: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """ΣM(x̂−y)² / (3ΣM) with pictures in [-1,1] and y the exact target: [B]."""
    return masked_mean(_squared_error(output, target), mask)


def in_mask_ratio(output: Tensor, content: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """In-mask error of the edit over that of the unedited picture: [B].

    0 is the exact target, 1 as far from it as no edit at all. NaN where the target equals the
    unedited picture inside the mask, because then there is nothing to gain.
    """
    unedited = in_mask_error(content, target, mask)
    ratio = in_mask_error(output, target, mask) / unedited
    return torch.where(unedited > 0, ratio, torch.nan)


def success(output: Tensor, content: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """1 where `in_mask_ratio` is below .5, else 0, NaN where the ratio is NaN: [B]."""
    ratio = in_mask_ratio(output, content, target, mask)
    return torch.where(ratio.isnan(), ratio, (ratio < SUCCESS_RATIO).float())


def leak(
    output: Tensor, content: Tensor, mask: Tensor, threshold: float = CHANGE_THRESHOLD
) -> Tensor:
    """Share of background pixels that changed: [B].

    Args:
        output: edited pictures [B,3,H,W] in [0,1].
        content: unedited pictures [B,3,H,W] in [0,1].
        mask: [B,1,H,W], 1 on the object.
        threshold: a pixel changed when the largest of its three channel differences is above this.
    """
    return masked_mean(_changed(output, content, threshold), 1 - mask)


def coverage(
    output: Tensor, content: Tensor, mask: Tensor, threshold: float = CHANGE_THRESHOLD
) -> Tensor:
    """Share of the object's pixels that changed, by the same threshold as `leak`: [B]."""
    return masked_mean(_changed(output, content, threshold), mask)


def _squared_error(a: Tensor, b: Tensor) -> Tensor:
    """Squared difference in the [-1,1] range, so four times that of [0,1]: [B,3,H,W]."""
    if a.shape != b.shape:
        raise ValueError(f"pictures differ in shape: {list(a.shape)} and {list(b.shape)}")
    return (2 * (a.float() - b.float())).square()


def _changed(output: Tensor, content: Tensor, threshold: float) -> Tensor:
    """1 where a pixel changed: [B,1,H,W]."""
    if output.shape != content.shape:
        raise ValueError(f"pictures differ in shape: {output.shape} and {content.shape}")
    difference = (output.float() - content.float()).abs().amax(1, keepdim=True)
    return torch.where(difference.isnan(), difference, (difference > threshold).float())
