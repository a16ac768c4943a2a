"""Crop and refine: restyle a small object once more in a crop around it.

A model works at one resolution, whatever the image's. Where the object is a small part of a large
image it is located in the whole image and restyled in a crop around it, which gives it more of the
model's pixels (diffusers' inpainting pipelines call this `padding_mask_crop`). Words and regions
are those of the first pass, so that nothing is located again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor

from regionroute.editing.request import EditRequest

MARGIN = 0.15  # of the region's longer side, on every side: context for the model
MAX_AREA = 0.7  # of the image; a larger crop gains too little resolution

Crop = tuple[int, int, int, int]


def crop_around(regions: Tensor) -> Crop | None:
    """Find the crop around regions that is worth refining.

    Args:
        regions: [S,H,W] in [0,1].

    Returns:
        Top, left, height and width in pixels; None if there is no region, or if the crop covers
        most of the image.
    """
    inside = regions.amax(0) > 0
    rows, columns = (inside.any(axis).nonzero().flatten() for axis in (1, 0))
    if not len(rows):
        return None
    height, width = inside.shape
    spans = [(int(line[0]), int(line[-1]) + 1) for line in (rows, columns)]
    margin = round(MARGIN * max(last - first for first, last in spans))
    (top, bottom), (left, right) = (
        (max(0, first - margin), min(limit, last + margin))
        for (first, last), limit in zip(spans, (height, width), strict=True)
    )
    crop = top, left, bottom - top, right - left
    return None if crop[2] * crop[3] > MAX_AREA * height * width else crop


def refine_crop(
    image: Tensor,
    request: EditRequest,
    regions: Tensor,
    edit: Callable[[Tensor, EditRequest], Tensor],
) -> tuple[Tensor, Crop] | None:
    """Restyle the regions once more, in a crop around them.

    Args:
        image: the source image, [3,H,W] in [0,1].
        request: of the first pass.
        regions: of the first pass, [S,H,W] in [0,1].
        edit: edits an image [3,h,w] by a request with regions.

    Returns:
        The refined crop [3,h,w] and its place; None if no crop is worth refining.
    """
    crop = crop_around(regions)
    if crop is None:
        return None
    top, left, height, width = crop
    rows, columns = slice(top, top + height), slice(left, left + width)
    parts = tuple(region[rows, columns].clone() for region in regions)
    cropped = dataclasses.replace(request, regions=parts)
    return edit(image[:, rows, columns], cropped), crop
