"""Pastes a restyled object back into its photo; outside the mask nothing changes, bit for bit."""

import torch
import torch.nn.functional as F
from torch import Tensor


def composite(content: Tensor, styled: Tensor, mask: Tensor, feather: int = 0) -> Tensor:
    """Composite Y = M·S(x) + (1 − M)·x, exactly (RegionRoute, training pairs).

    Args:
        content: [3, H, W] or [B, 3, H, W].
        styled: the restyled image, of the same shape.
        mask: [1, H, W] or [B, 1, H, W] in {0, 1}, one where the styled image is used.
        feather: width in pixels of a ramp inside the mask over which the styled image fades in;
            the image border does not count as an edge. 0 is a hard edge.

    Returns:
        A tensor of content's shape: equal to `content` wherever the mask is 0, and to `styled`
        deeper than `feather` pixels inside the mask.

    Raises:
        ValueError: shapes differ, the mask is not binary, or feather is negative.
    """
    if styled.shape != content.shape:
        raise ValueError(f"styled is {list(styled.shape)}, content is {list(content.shape)}")
    if mask.shape != (*content.shape[:-3], 1, *content.shape[-2:]):
        raise ValueError(f"mask is {list(mask.shape)}, content is {list(content.shape)}")
    if not ((mask == 0) | (mask == 1)).all():
        raise ValueError("the mask must hold only zeros and ones")
    weight = feather_inward(mask, feather)
    blend = torch.where(weight == 1, styled, content + weight * (styled - content))
    return torch.where(mask == 0, content, blend)


def feather_inward(mask: Tensor, width: int) -> Tensor:
    """Ramp from the edge of a mask inwards: the d-th pixel from the edge gets d / (width + 1).

    Args:
        mask: [1, H, W] or [B, 1, H, W] in {0, 1}.
        width: pixels of the ramp, 0 for none.

    Returns:
        Weights in [0, 1] of mask's shape, 0 outside the mask, 1 deeper than `width` pixels.

    Raises:
        ValueError: width is negative.
    """
    if width < 0:
        raise ValueError(f"feather is {width}, it must be 0 or more pixels")
    eroded, total = mask, mask.clone()
    for _ in range(width):
        # Max-pooling ignores padding, so the ramp does not follow the image border.
        eroded = -F.max_pool2d(-eroded, 3, stride=1, padding=1)
        total = total + eroded
    return total / (width + 1)
