"""Where objects are: masks with the words, scores and sources that belong to them.

A `Grounder` finds the boxes of a word, a `BoxSegmenter` cuts the object out of its box; which of
them there are and how they are named is in `pseudo_labels.segment.loading`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from regionroute.data.manifest import mask_box
from regionroute.errors import UserError

Box = tuple[int, int, int, int]  # (y0, x0, y1, x1) in pixels, half-open


@dataclass(frozen=True)
class Detection:
    """A place where a word was found.

    Attributes:
        box: around the object, inside the image.
        score: confidence in [0, 1].
        mask: [1, H, W] in {0, 1} where the finder cuts out by itself, else None.
    """

    box: Box
    score: float
    mask: Tensor | None = None


class Grounder(Protocol):
    """Finds objects by their words.

    Attributes:
        name: for the provenance of samples.
        masks: whether it cuts out by itself, so that no segmenter is needed.
    """

    name: str
    masks: bool

    def ground(self, image: Tensor, words: Sequence[str]) -> list[list[Detection]]:
        """Look for words in an image [3, H, W] in [0, 1]; the image is encoded once.

        Returns:
            For each word its places, the best first; an empty list where it is not there.
        """
        ...


class BoxSegmenter(Protocol):
    """Cuts objects out of their boxes.

    Attributes:
        name: for the provenance of samples.
    """

    name: str

    def segment(self, image: Tensor, boxes: Sequence[Box]) -> list[tuple[Tensor, float]]:
        """Masks of several boxes of an image [3, H, W] in [0, 1]; it is embedded once for all.

        Returns:
            For each box a mask [1, H, W] in {0, 1}, which may be empty, and a score in [0, 1].
        """
        ...


@dataclass(frozen=True)
class Segment:
    """One mask of an image.

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
        """Share of the image under the mask, in (0, 1]."""
        return float(self.mask.mean())

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Tight box (y0, x0, y1, x1), half-open."""
        return mask_box(self.mask)


def choose_segments(segments: list[Segment], policy: str) -> list[Segment]:
    """Which of several objects of one word are meant.

    Args:
        segments: segments of one image.
        policy: "all", "largest", or a number: "1" is the leftmost, "2" the next.

    Returns:
        Segments with masks of a word united ("all") or with the one chosen; a word with fewer
        objects than that number is skipped.

    Raises:
        UserError: another policy.
    """
    check_policy(policy)
    if policy == "all":
        return merge_words(segments)
    groups: dict[str, list[Segment]] = {}
    for segment in segments:
        groups.setdefault(segment.word.casefold(), []).append(segment)
    if policy == "largest":
        return [max(group, key=lambda segment: segment.area) for group in groups.values()]
    place = int(policy) - 1
    ordered = [sorted(group, key=_middle) for group in groups.values()]
    return [group[place] for group in ordered if place < len(group)]


def check_policy(policy: str) -> None:
    """Refuses a policy for several instances that `choose_segments` does not know.

    Raises:
        UserError: neither "all" nor "largest" nor a whole number from 1.
    """
    if policy not in ("all", "largest") and not (policy.isdecimal() and int(policy) >= 1):
        raise UserError(f"instances is '{policy}': use all, largest, or a number from 1")


def _middle(segment: Segment) -> int:
    """Twice the horizontal middle of the segment's box."""
    return segment.box[1] + segment.box[3]


def merge_words(segments: list[Segment]) -> list[Segment]:
    """One segment per word: a prompt that says "the dog" means every dog of the image.

    Args:
        segments: segments of one image.

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
