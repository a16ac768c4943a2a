"""A second, closer look: the object fills the model's view when it is restyled.

A model works at one size, whatever the photo's. Where the object is a small part of a large photo,
it is found in the whole photo and restyled in a window around it, which then has more of the
model's pixels. Words and gates are those of the first look, so that nothing is found anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor

from regionroute.editing.request import EditRequest

MARGIN = 0.15  # of the region's longer side, on every side: the model needs to see around it
MOST = 0.7  # share of the picture's area from which a window is no closer look

Window = tuple[int, int, int, int]


def window_of(regions: Tensor) -> Window | None:
    """The window around regions that is worth a closer look.

    Args:
        regions: [S,H,W] in [0,1].

    Returns:
        Top, left, height and width in pixels; None where there is no region, or it fills most of
        the picture anyway.
    """
    inside = regions.amax(0) > 0
    rows, columns = (inside.any(axis).nonzero().flatten() for axis in (1, 0))
    if not len(rows):
        return None
    height, width = inside.shape
    spans = [(int(line[0]), int(line[-1]) + 1) for line in (rows, columns)]
    spare = round(MARGIN * max(last - first for first, last in spans))
    (top, bottom), (left, right) = (
        (max(0, first - spare), min(limit, last + spare))
        for (first, last), limit in zip(spans, (height, width), strict=True)
    )
    window = top, left, bottom - top, right - left
    return None if window[2] * window[3] > MOST * height * width else window


def look_closer(
    image: Tensor,
    request: EditRequest,
    regions: Tensor,
    edit: Callable[[Tensor, EditRequest], Tensor],
) -> tuple[Tensor, Window] | None:
    """Restyles the regions once more, in a window around them.

    Args:
        image: the unedited picture, [3,H,W] in [0,1].
        request: what was done.
        regions: where it was done, [S,H,W] in [0,1].
        edit: edits a picture [3,h,w] by a request with regions.

    Returns:
        The picture [3,H,W] and the window; None where no window is worth it.
    """
    window = window_of(regions)
    if window is None:
        return None
    top, left, height, width = window
    rows, columns = slice(top, top + height), slice(left, left + width)
    parts = tuple(region[rows, columns].clone() for region in regions)
    closer = dataclasses.replace(request, regions=parts)
    out = image.clone()
    out[:, rows, columns] = edit(image[:, rows, columns].clone(), closer)
    return out, window
