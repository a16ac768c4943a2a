"""Where a photo of an object bank is placed in a composed image."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Placement:
    """Crop (rows, columns) of a square, mirrored or not, scaled to a window of the image.

    Attributes:
        rows: first row and the row after the last.
        columns: the same for columns.
        mirrored: whether the crop is flipped left to right.
        window: top, left, height and width in the image, pixels.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    mirrored: bool
    window: tuple[int, int, int, int]


def put(square: Tensor, place: Placement, side: int) -> Tensor:
    """Place a crop of a square in an image that is zero elsewhere.

    Args:
        square: [C,S,S].
        place: what is cropped, and where it goes.
        side: side of the image in pixels.

    Returns:
        [C,side,side].
    """
    part = square[:, slice(*place.rows), slice(*place.columns)]
    if place.mirrored:
        part = part.flip(-1)
    top, left, height, width = place.window
    if part.shape[-2:] != (height, width):
        part = F.interpolate(part[None], (height, width), mode="bilinear", antialias=True)[0]
    out = square.new_zeros(len(square), side, side)
    out[:, top : top + height, left : left + width] = part
    return out
