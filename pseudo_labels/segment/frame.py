"""Coordinates that were measured in an image of another size than the one that was read.

A label file may state the size of the image its numbers belong to. The same aspect means that the
image was scaled; a size with height and width swapped means, where EXIF rotates the image by a
quarter, that it was measured as it is stored. Anything else is refused.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pseudo_labels.segment import Box, resize_mask
from regionroute.data.image_files import ImageHeader
from regionroute.errors import UserError

Size = tuple[int, int]  # (height, width)
MARGIN = 0.1  # of the longer side: how far an outline may reach beyond the image
LARGEST_SIDE = 1_000_000


@dataclass(frozen=True)
class Frame:
    """How coordinates of one frame lie in the upright image.

    Attributes:
        stated: (height, width) of the frame of the coordinates.
        size: (height, width) of the upright image.
        orientation: EXIF orientation that turns the frame upright, 1 for none.
    """

    stated: Size
    size: Size
    orientation: int = 1

    def points(self, points: np.ndarray) -> np.ndarray:
        """Points [N,2] of (x, y) in the upright image, in its pixels."""
        height, width = self.stated
        x, y = points[:, 0], points[:, 1]
        turned = {
            5: (y, x),
            6: (height - y, x),
            7: (height - y, width - x),
            8: (y, width - x),
        }
        x, y = turned.get(self.orientation, (x, y))
        if self.orientation >= 5:
            height, width = width, height
        return np.stack([x * (self.size[1] / width), y * (self.size[0] / height)], axis=1)

    def box(self, box: Box) -> Box:
        """A box (y0, x0, y1, x1) in the upright image, in its pixels."""
        corners = self.points(np.array([[box[1], box[0]], [box[3], box[2]]], dtype=float))
        (x0, y0), (x1, y1) = corners.min(0), corners.max(0)
        return round(y0), round(x0), round(y1), round(x1)

    def mask(self, mask: Tensor) -> Tensor:
        """A mask [1, H, W] of the frame as a mask of the upright image.

        Raises:
            UserError: nothing of it is left at the image's size.
        """
        if self.orientation >= 5:
            mask = mask.mT
            mask = mask.flip(-1) if self.orientation in (6, 7) else mask
            mask = mask.flip(-2) if self.orientation in (7, 8) else mask
        return resize_mask(mask.contiguous(), self.size)


def match_frame(stated: Size, header: ImageHeader) -> Frame:
    """The frame of coordinates of a label file that states its image's size.

    Where EXIF swaps height and width and both readings fit (a square), the upright one is taken,
    as most programs show images upright.

    Args:
        stated: (height, width) that the label file states.
        header: of the image that was found.

    Raises:
        UserError: another aspect, so that the coordinates belong to another image or a crop.
    """
    if _same_aspect(stated, header.size):
        return Frame(stated, header.size)
    if header.orientation >= 5 and _same_aspect(stated, header.size[::-1]):
        return Frame(stated, header.size, header.orientation)
    raise UserError(
        f"its coordinates are of an image of {stated[1]}x{stated[0]} pixels, this one has "
        f"{header.size[1]}x{header.size[0]} and another aspect: label this image"
    )


def _same_aspect(stated: Size, size: Size) -> bool:
    """Whether one size is the other, scaled and rounded to whole pixels."""
    scale = max(size) / max(stated)
    return all(abs(b - a * scale) <= max(1.0, scale) for a, b in zip(stated, size, strict=True))


def stated_size(height: Any, width: Any) -> Size:
    """A stated size as two whole numbers.

    Raises:
        UserError: they are none, or none an image can have.
    """
    for side in (height, width):
        whole = isinstance(side, int) or (isinstance(side, float) and side.is_integer())
        if not whole or isinstance(side, bool) or not 1 <= side <= LARGEST_SIDE:
            raise UserError(
                f"the stated size {width!r} x {height!r} must be two whole numbers of pixels"
            )
    return int(height), int(width)


def check_inside(points: np.ndarray, size: Size) -> None:
    """Refuses coordinates [N,2] of (x, y) that cannot be meant for an image of (height, width).

    Raises:
        UserError: they reach far beyond it, or are shares of it in place of pixels.
    """
    height, width = size
    margin = MARGIN * max(size) + 2
    low, high = points.min(0), points.max(0)
    if (low < -margin).any() or high[0] > width + margin or high[1] > height + margin:
        raise UserError(
            f"it reaches from {low[0]:g}, {low[1]:g} to {high[0]:g}, {high[1]:g} in an image of "
            f"{width}x{height} pixels: its coordinates are of another image or size; state the "
            "size they belong to as 'width' and 'height'"
        )
    if high.max() <= 1 < min(size):
        raise UserError("its coordinates are shares of the image (0 to 1): give pixels")


def upright(mask: np.ndarray) -> Tensor:
    """A boolean array [H,W] as a mask [1, H, W] in {0, 1}."""
    return torch.from_numpy(np.ascontiguousarray(mask, dtype=np.float32))[None]
