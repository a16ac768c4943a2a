"""Sizes at which a base sees pictures of several aspects, and which part of a picture it sees.

A batch needs one shape, photos have many. Each photo goes to the bucket of the nearest aspect: the
largest window of that aspect in the photo's middle is kept and resized to the bucket, and masks
take the same window. Nothing is stretched, and what is cut off is known (`lost`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from regionroute.data.images import resize

LONGEST = 16.0  # of one side to the other; beyond it the short side is a token or two
STEP = 1.05  # neighbouring buckets differ in aspect by at least this factor
KONTEXT = (1024, 16)  # resolution and multiple for which the published sizes are meant

Size = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """A part of a picture, in whole pixels.

    Attributes:
        top, left: of its first pixel.
        height, width: of it.
        lost: share of the picture's pixels outside it, in [0,1).
    """

    top: int
    left: int
    height: int
    width: int
    lost: float

    def of(self, picture: Tensor) -> Tensor:
        """That part of a picture or mask [...,H,W]; a view."""
        return picture[..., self.top : self.top + self.height, self.left : self.left + self.width]


@lru_cache(maxsize=16)
def bucket_sizes(resolution: int, multiple: int) -> tuple[Size, ...]:
    """Sizes (H,W) of about equal area whose sides are multiples of what the base needs.

    For FLUX.1-Kontext at 1024 px they are the seventeen it was trained at, as diffusers has them,
    and longer ones; for every other base they follow from the square.

    Args:
        resolution: side of the square of that area, in pixels.
        multiple: both sides are multiples of it (2 · vae scale).

    Returns:
        From the tallest to the widest; the square is among them.
    """
    side = max(1, round(resolution / multiple))
    wide = [(side * multiple, side * multiple)]
    if (resolution, multiple) == KONTEXT:
        wide = _published()
    for height, width in _candidates(side):
        longest = wide[-1][1] / wide[-1][0]
        if longest * STEP <= width / height <= LONGEST:
            wide.append((height * multiple, width * multiple))
    tall = [(width, height) for height, width in reversed(wide[1:])]
    return (*tall, *wide)


def _published() -> list[Size]:
    """Kontext's own sizes from the square to the widest."""
    from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS

    return sorted(
        ((h, w) for w, h in PREFERRED_KONTEXT_RESOLUTIONS if w >= h), key=lambda s: s[1] / s[0]
    )


def _candidates(side: int) -> list[Size]:
    """Wide sizes in cells, by aspect: every height with the widths next to the exact one."""
    found = {
        (height, width)
        for height in range(side - 1, 0, -1)
        for width in (side * side // height, -(-side * side // height))
    }
    return sorted(found, key=lambda size: (size[1] / size[0], size[0]))


def nearest_bucket(height: int, width: int, sizes: tuple[Size, ...]) -> Size:
    """The size of the nearest aspect, by ratio; of two equally near ones the squarer."""
    aspect = math.log(width / height)

    def distance(size: Size) -> tuple[float, float]:
        own = math.log(size[1] / size[0])
        return round(abs(own - aspect), 9), abs(own)

    return min(sizes, key=distance)


def crop_window(height: int, width: int, size: Size) -> Window:
    """The largest window of a size's aspect in the middle of a picture.

    Args:
        height: H of the picture.
        width: W of the picture.
        size: (H',W') to which the window will be resized.

    Returns:
        The window; the whole picture where the aspects agree to a pixel.
    """
    rows = min(height, max(1, round(width * size[0] / size[1])))
    columns = min(width, max(1, round(height * size[1] / size[0])))
    lost = 1 - rows * columns / (height * width)
    return Window((height - rows) // 2, (width - columns) // 2, rows, columns, lost)


def fitted(picture: Tensor, size: Size) -> Tensor:
    """A picture's window of a size's aspect, at that size.

    Args:
        picture: [B,3,H,W] in [0,1].
        size: (H',W').

    Returns:
        [B,3,H',W'] in [0,1], antialiased; unchanged at equal size.
    """
    window = crop_window(picture.shape[-2], picture.shape[-1], size)
    return resize(window.of(picture), size)
