"""What a network sees of an image: the padded box of each region, or the whole image.

StyleExpert, StyleGallery and StyleMamba restyle and measure whole images. For regional edits that
would reward a method that restyles everything, so the default scope is the object's box.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from eval.metrics.base import EvalBatch
from regionroute.data.manifest import mask_box

Scope = Literal["object", "image"]
CROP_PADDING = 0.05  # of the longer side of the mask's box
CROP_MIN_PADDING = 8  # pixels
SCOPES: dict[Scope, str] = {
    "object": "measured on the box of each region's mask, padded by 5 % of its longer side, at "
    "least 8 pixels, clipped; mean over the regions",
    "image": "measured on the whole image",
}


def crop_box(mask: Tensor) -> tuple[int, int, int, int]:
    """The padded box (y0, x0, y1, x1), half-open, around a mask [1,H,W], clipped to the image.

    Padding is 5 % of the longer side of the box, at least 8 pixels, on each side.

    Raises:
        ValueError: the mask is empty.
    """
    y0, x0, y1, x1 = mask_box(mask)
    pad = max(CROP_MIN_PADDING, round(CROP_PADDING * max(y1 - y0, x1 - x0)))
    height, width = mask.shape[1:]
    return max(0, y0 - pad), max(0, x0 - pad), min(height, y1 + pad), min(width, x1 + pad)


def views(batch: EvalBatch, images: Tensor, scope: Scope) -> list[Tensor]:
    """One view for each region of each sample, V in all, in the order of the batch.

    Args:
        batch: gives the masks.
        images: [B,3,H,W], the batch's content, output or target.
        scope: what a view shows.

    Returns:
        V images [3,h,w]; of the whole image as many as there are regions.
    """
    found = []
    for image, masks in zip(images, batch.region_masks, strict=True):
        for mask in masks:
            if scope == "image":
                found.append(image)
            else:
                y0, x0, y1, x1 = crop_box(mask)
                found.append(image[:, y0:y1, x0:x1])
    return found


def square(images: list[Tensor], side: int) -> Tensor:
    """V images [3,h,w] resized to [V,3,side,side], bilinear and antialiased."""
    resized = [
        F.interpolate(p[None], (side, side), mode="bilinear", antialias=True, align_corners=False)
        for p in images
    ]
    return torch.cat(resized)


def per_sample(values: Tensor, batch: EvalBatch) -> Tensor:
    """Values of V views [V] to the mean of each sample's valid ones [B], NaN without any."""
    counts = [len(masks) for masks in batch.region_masks]
    return torch.stack([part.nanmean() for part in values.split(counts)])


def remembered(batch: EvalBatch, key: object, make: Callable[[], Any]) -> Any:
    """What several metrics of one batch share, made once: features of a network, say."""
    if key not in batch.memo:
        batch.memo[key] = make()
    return batch.memo[key]
