"""Where objects are: masks with the words, scores and sources that belong to them."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from regionroute.errors import UserError
from regionroute.manifest import mask_box


@dataclass(frozen=True)
class Segment:
    """One mask of a picture.

    Attributes:
        word: the object word.
        mask: [1, H, W] in {0, 1}, not empty.
        score: confidence in [0, 1]; 1 for masks that were given.
        source: who made the mask.
        count: objects of this word under the mask.
    """

    word: str
    mask: Tensor
    score: float = 1.0
    source: str = "given"
    count: int = 1

    @property
    def area(self) -> float:
        """Share of the picture under the mask, in (0, 1]."""
        return float(self.mask.mean())

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Tight box (y0, x0, y1, x1), half-open."""
        return mask_box(self.mask)


def merge_words(segments: list[Segment]) -> list[Segment]:
    """One segment a word: a prompt that says "the dog" means every dog of the picture.

    Args:
        segments: segments of one picture.

    Returns:
        Segments with masks united and counts added up, in order of first appearance.
    """
    merged: dict[str, Segment] = {}
    for segment in segments:
        key = segment.word.casefold()
        if key not in merged:
            merged[key] = segment
            continue
        known = merged[key]
        merged[key] = Segment(
            known.word,
            torch.maximum(known.mask, segment.mask),
            min(known.score, segment.score),
            known.source,
            known.count + segment.count,
        )
    return list(merged.values())


def touching(mask: Tensor, other: Tensor) -> bool:
    """Whether two masks [1, H, W] overlap or lie directly beside each other."""
    return bool((F.max_pool2d(mask, 3, stride=1, padding=1) * other).any())


def resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask [1, H, W] at another (height, width): a pixel belongs if at least half of it did.

    Raises:
        UserError: nothing of the mask is left at this size.
    """
    if mask.shape[-2:] == size:
        return mask
    shares = F.interpolate(mask[None], size, mode="bilinear", antialias=True)[0]
    smaller = (shares >= 0.5).to(mask.dtype)
    if not smaller.any():
        height, width = size
        raise UserError(f"the mask has no pixel left at {width}x{height}: use a larger size")
    return smaller
