"""Objects that have no mask yet: found by their words, cut out of their boxes, kept on disk."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from pseudo_labels.segment import Box, Segment
from pseudo_labels.segment.frame import check_inside
from pseudo_labels.segment.given import LabelledObject, LabelledPhoto, Rejection
from pseudo_labels.segment.loading import FinderSettings
from regionroute.data.images import read_mask, write_image
from regionroute.errors import UserError
from regionroute.files import read_json, write_json


def find_objects(
    image: Tensor, photo: LabelledPhoto, settings: FinderSettings
) -> tuple[list[Segment], list[Rejection]]:
    """Segments of a photo's objects whose pixels are not known.

    Args:
        image: the photo [3, H, W] in [0, 1].
        photo: its objects; those with masks are passed over.
        settings: grounder and segmenter.

    Returns:
        One segment an instance, and the objects that are not there.

    Raises:
        UserError: grounder or segmenter cannot be had, or cannot know a word.
    """
    wanted = [item for item in photo.objects if not item.masked]
    segments, rejected = _by_word(image, photo, wanted, settings)
    boxes = []
    for item in wanted:
        if item.box is None:
            continue
        inside = _clip(item.box, image)
        if inside is None:
            reason = (
                f"{photo.path}: the box of the {item.word} lies outside the image or far beyond "
                "it: state the size it belongs to as 'width' and 'height'"
            )
            rejected.append(_refusal(reason, photo, item.word))
        else:
            boxes.append((item.word, inside, 1.0))
    cut, empty = _cut_out(image, photo, boxes, settings)
    return [*segments, *cut], [*rejected, *empty]


def _by_word(
    image: Tensor,
    photo: LabelledPhoto,
    wanted: Sequence[LabelledObject],
    settings: FinderSettings,
) -> tuple[list[Segment], list[Rejection]]:
    """Objects of which only the word is known."""
    words = list(dict.fromkeys(item.word for item in wanted if item.box is None))
    if not words:
        return [], []
    if settings.grounder is None:
        reason = f"{photo.path}: the {{}} has no mask: give one, or --grounder to look for it"
        return [], [_refusal(reason.format(word), photo, word) for word in words]
    grounder = settings.load_grounder()
    segments: list[Segment] = []
    rejected: list[Rejection] = []
    boxes: list[tuple[str, Box, float]] = []
    for word, found in zip(words, grounder.ground(image, words), strict=True):
        if not found:
            reason = f"{photo.path}: there is no {word} in it that {grounder.name} could see"
            rejected.append(_refusal(reason, photo, word))
        for item in found:
            if item.mask is None:
                boxes.append((word, item.box, item.score))
            else:
                segments.append(Segment(word, item.mask, item.score, grounder.name))
    cut, empty = _cut_out(image, photo, boxes, settings, f"{grounder.name}, ")
    return [*segments, *cut], [*rejected, *empty]


def _cut_out(
    image: Tensor,
    photo: LabelledPhoto,
    boxes: Sequence[tuple[str, Box, float]],
    settings: FinderSettings,
    finder: str = "",
) -> tuple[list[Segment], list[Rejection]]:
    """A segment a (word, box, score); its score is the box's times the mask's."""
    if not boxes:
        return [], []
    segmenter = settings.load_segmenter()
    segments: list[Segment] = []
    rejected: list[Rejection] = []
    results = segmenter.segment(image, [box for _, box, _ in boxes])
    for (word, _, score), (mask, quality) in zip(boxes, results, strict=True):
        if mask.any():
            source = f"{finder}{segmenter.name}"
            segments.append(Segment(word, mask, round(score * quality, 4), source))
        else:
            reason = f"{photo.path}: {segmenter.name} found no {word} in its box"
            rejected.append(_refusal(reason, photo, word))
    return segments, rejected


def _clip(box: Box, image: Tensor) -> Box | None:
    height, width = image.shape[-2:]
    y0, x0, y1, x1 = max(0, box[0]), max(0, box[1]), min(height, box[2]), min(width, box[3])
    try:
        check_inside(np.array([[box[1], box[0]], [box[3], box[2]]], dtype=float), (height, width))
    except UserError:
        return None
    return (y0, x0, y1, x1) if y1 > y0 and x1 > x0 else None


def _refusal(reason: str, photo: LabelledPhoto, word: str) -> Rejection:
    return Rejection(reason, photo.name, word, line=photo.line or None)


def store(record: Path, segments: Sequence[Segment], rejected: Sequence[Rejection]) -> None:
    """Keep what was found: masks beside the record, the record last."""
    rows = []
    for index, segment in enumerate(segments):
        mask = record.with_name(f"{record.stem}-{index}.png")
        write_image(mask, segment.mask)
        rows.append(
            {
                "word": segment.word,
                "mask": mask.name,
                "score": segment.score,
                "source": segment.source,
                "count": segment.count,
            }
        )
    write_json(record, {"segments": rows, "rejected": [dataclasses.asdict(r) for r in rejected]})


def restore(record: Path, size: tuple[int, int]) -> tuple[list[Segment], list[Rejection]] | None:
    """What `store` kept; None if there is nothing, or not all of it.

    Args:
        record: as given to `store`.
        size: (height, width) of the photo.
    """
    if not record.exists():
        return None
    try:
        content = read_json(record)
        segments = [
            Segment(
                row["word"],
                read_mask(record.with_name(row["mask"]), size),
                row["score"],
                row["source"],
                row["count"],
            )
            for row in content["segments"]
        ]
        return segments, [Rejection(**row) for row in content["rejected"]]
    except (UserError, KeyError, TypeError):
        return None  # damaged from outside: find it again
