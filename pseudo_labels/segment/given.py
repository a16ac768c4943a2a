"""Labels that are given: a file of photos, words, masks, outlines and boxes.

Rows of JSON, whose forms may be mixed; file names are relative to the labels file:

    {"image": "dog.jpg", "objects": [{"word": "dog", "mask": "dog.mask0.png"}, ...]}
    {"file": "dog.jpg", "word": "dog", "mask": "dog_mask.png"}
    {"file_name": "dog.jpg", "text": "...", "attn_list": [["dog", "dog_mask.png"], ...]}

The last is TokenCompose's grounded COCO. In place of "mask" an object may have "segmentation"
(COCO's polygons or run lengths), "bbox" (COCO's [x, y, width, height]: the segmenter cuts it out)
or nothing (the grounder looks for its word). A file ending in .json is an instances file of COCO.

A row may state the size its coordinates belong to as "width" and "height"; see
`pseudo_labels.segment.frame`. Files must be inside the folder, as in manifests.

Further keys (licence, origin, attribution, mask_source, ...) are kept as the photo's facts. What
is wrong with a row never stops the others: it becomes a `Rejection`.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pseudo_labels.segment import Box, Segment
from pseudo_labels.segment.coco import coco_rows
from pseudo_labels.segment.frame import match_frame, stated_size
from pseudo_labels.segment.outlines import corner_box, outline_mask, outline_of
from regionroute.data.image_files import image_header
from regionroute.data.images import read_image
from regionroute.data.masks import read_mask
from regionroute.data.names import leaves_folder, path_problem
from regionroute.errors import UserError
from regionroute.files import file_hash, numbered_lines, parse_json_line

_FACTS = ("licence", "license", "attribution", "origin")


@dataclass(frozen=True)
class Rejection:
    """Something that was excluded, and why, in one sentence; `checks`: what was measured."""

    reason: str
    photo: str | None = None
    word: str | None = None
    style: str | None = None
    line: int | None = None
    sample: str | None = None
    checks: dict[str, Any] | None = None


@dataclass(frozen=True)
class LabelledObject:
    """An object word and what is known of the object's place: one of the three, or nothing.

    Attributes:
        word: the object word.
        mask: file of its mask.
        source: who made the mask or outline.
        count: objects of that word under the mask.
        box: (y0, x0, y1, x1) around it, in pixels of the upright photo.
        outline: COCO's "segmentation" as JSON, see `outline_of`.
    """

    word: str
    mask: Path | None = None
    source: str = "given"
    count: int = 1
    box: Box | None = None
    outline: str | None = None

    @property
    def masked(self) -> bool:
        """Whether its pixels are known."""
        return self.mask is not None or self.outline is not None


@dataclass(frozen=True)
class LabelledPhoto:
    """A photo and what is known of it.

    Attributes:
        name: the photo as the labels file names it.
        path: its file.
        line: line of the labels file that names it first.
        objects: its objects, at least one.
        facts: licence, attribution and origin, where given.
    """

    name: str
    path: Path
    line: int
    objects: tuple[LabelledObject, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)


def read_labels(
    path: str | Path, folder: str | Path | None = None
) -> tuple[list[LabelledPhoto], list[Rejection]]:
    """Read a labels file; rows of one photo are put together.

    Args:
        path: JSON-lines file with rows of the forms above, or an instances file of COCO (.json).
        folder: what file names are relative to, None for the labels file's own folder.

    Returns:
        Photos in order of first appearance, and the rows that cannot be used.

    Raises:
        UserError: there is no such file, or it is not text.
    """
    path = Path(path)
    root = path.parent if folder is None else Path(folder)
    photos: dict[str, LabelledPhoto] = {}
    rejected: list[Rejection] = []
    for number, row in _rows(path):
        try:
            if isinstance(row, UserError):
                raise row
            photo, bad = _parse_row(path, number, row, root)
        except UserError as error:
            rejected.append(Rejection(str(error), line=number))
            continue
        rejected += bad
        if not photo.objects:
            continue
        known = photos.get(photo.name)
        if known is not None:
            objects = (*known.objects, *photo.objects)
            photo = LabelledPhoto(known.name, known.path, known.line, objects, known.facts)
        photos[photo.name] = photo
    return list(photos.values()), rejected


def read_label_files(
    paths: Sequence[str | Path], folder: str | Path | None = None
) -> tuple[list[LabelledPhoto], list[Rejection]]:
    """Read several labels files; a photo that more than one names has the objects of all.

    Its objects, facts and line number are in the order of the files: those of the first come first.

    Args:
        paths: labels files.
        folder: what their file names are relative to, None for the folder of each.

    Returns:
        As `read_labels`.

    Raises:
        UserError: one of the files does not exist, or is not text.
    """
    photos: dict[str, LabelledPhoto] = {}
    rejected: list[Rejection] = []
    for path in paths:
        found, bad = read_labels(path, folder)
        rejected += bad
        for photo in found:
            key = os.path.realpath(photo.path)
            known = photos.get(key)
            if known is not None:
                more = tuple(item for item in photo.objects if item not in known.objects)
                facts = {**photo.facts, **known.facts}
                photo = replace(known, objects=known.objects + more, facts=facts)
            photos[key] = photo
    return list(photos.values()), rejected


def _rows(path: Path) -> Iterable[tuple[int, Mapping[str, Any] | UserError]]:
    if path.suffix.lower() == ".json":
        yield from enumerate(coco_rows(path), start=1)
        return
    for number, line in numbered_lines(path):
        try:
            yield number, parse_json_line(path, number, line)
        except UserError as error:
            yield number, error


def _parse_row(
    path: Path, number: int, row: Mapping[str, Any], folder: Path
) -> tuple[LabelledPhoto, list[Rejection]]:
    """A row's photo with those of its objects that can be used, and the others."""
    where = f"{path}:{number}"
    if "image" in row:
        name, objects = row["image"], row.get("objects")
        if not isinstance(objects, list) or not objects:
            raise UserError(f"{where}: 'objects' must be a list of words and masks, at least one")
    elif "file" in row:
        name, objects = row["file"], [row]
    elif "file_name" in row:
        name, objects = row["file_name"], _grounded(where, row)
    else:
        raise UserError(f"{where}: a row names its photo by 'image' or by 'file'")
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}: the photo's name must be text")
    photo = _inside(where, folder, name)
    parsed, rejected = [], []
    for entry in objects:
        try:
            parsed.append(_parse_object(where, entry, row, photo, folder))
        except UserError as error:
            word = entry.get("word") if isinstance(entry, Mapping) else None
            shown = word if isinstance(word, str) else None
            rejected.append(Rejection(str(error), Path(name).as_posix(), shown, line=number))
    facts = {key: row[key] for key in _FACTS if key in row}
    found = LabelledPhoto(Path(name).as_posix(), photo, number, tuple(parsed), facts)
    return found, rejected


def _inside(where: str, folder: Path, name: str) -> Path:
    """A file that a row names, which must be inside the folder, as in manifests."""
    problem = path_problem(name, "the labels' folder")
    if problem is None and leaves_folder(folder, name):
        problem = "it leaves the labels' folder through a link"
    if problem:
        raise UserError(f"{where}: path {name!r} is refused: {problem}")
    return folder / name


def _grounded(where: str, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The objects of a row of TokenCompose's grounded COCO."""
    pairs = row.get("attn_list")
    if not isinstance(pairs, list) or not pairs:
        raise UserError(f"{where}: 'attn_list' must be a list of [word, mask], at least one")
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise UserError(f"{where}: 'attn_list' must hold pairs [word, mask]")
    return [{"word": word, "mask": mask} for word, mask in pairs]


def _parse_object(
    where: str, entry: Any, row: Mapping[str, Any], photo: Path, folder: Path
) -> LabelledObject:
    if not isinstance(entry, Mapping):
        raise UserError(f"{where}: an object must be written {{'word': ..., 'mask': ...}}")
    _need_text(where, entry, "word")
    word = " ".join(entry["word"].split())
    if not any(letter.isalnum() for letter in word):
        raise UserError(f"{where}: the word {word!r} has no letters")
    mask = None
    if "mask" in entry:
        _need_text(where, entry, "mask")
        mask = _inside(where, folder, entry["mask"])
    count = entry.get("instances", 1)
    if not isinstance(count, int) or count < 1:
        raise UserError(f"{where}: 'instances' must be a whole number from 1")
    try:
        outline, box = _place(entry, row, photo) if mask is None else (None, None)
    except UserError as error:
        raise UserError(f"{where}: the {word}: {error}") from error
    return LabelledObject(word, mask, str(row.get("mask_source", "given")), count, box, outline)


def _place(
    entry: Mapping[str, Any], row: Mapping[str, Any], photo: Path
) -> tuple[str | None, Box | None]:
    """An object's outline, or else its box in the upright photo, or neither."""
    stated = None
    if "width" in row and "height" in row:
        stated = stated_size(row["height"], row["width"])
    outline = outline_of(entry.get("segmentation"), stated)
    if outline is not None or "bbox" not in entry:
        return outline, None
    box = corner_box(entry["bbox"])
    if stated is not None:
        box = match_frame(stated, image_header(photo)).box(box)
    return None, box


def _need_text(where: str, entry: Mapping[str, Any], key: str) -> None:
    if not isinstance(entry.get(key), str) or not entry[key].strip():
        raise UserError(f"{where}: an object needs '{key}', some text")


def open_photo(photo: LabelledPhoto) -> tuple[Tensor, list[Segment], list[Rejection]]:
    """Read a photo and the masks and outlines that are given for it.

    Args:
        photo: one of `read_labels`.

    Returns:
        Image [3, H, W] in [0, 1]; a segment for each object whose pixels are known, at the
        image's size; and the objects whose masks cannot be used.

    Raises:
        UserError: the photo itself is missing, damaged or too large.
    """
    image = read_image(photo.path)
    size = (image.shape[-2], image.shape[-1])
    segments: list[Segment] = []
    rejected: list[Rejection] = []
    for item in photo.objects:
        if not item.masked:
            continue
        try:
            mask = _object_mask(item, size, photo)
        except (UserError, OSError) as error:
            rejected.append(Rejection(str(error), photo.name, item.word, line=photo.line))
            continue
        segments.append(Segment(item.word, mask, source=item.source, count=item.count))
    return image, segments, rejected


def _object_mask(item: LabelledObject, size: tuple[int, int], photo: LabelledPhoto) -> Tensor:
    if item.mask is not None:
        return read_mask(item.mask, size)
    where = f"{photo.path}: the outline of the {item.word}"
    try:
        mask = outline_mask(json.loads(item.outline or ""), image_header(photo.path))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    if not mask.any():
        raise UserError(f"{where}: the mask is empty, it covers no pixel of the image")
    return mask


def content_hash(photo: LabelledPhoto) -> str:
    """Hash of the photo's bytes.

    Raises:
        UserError: the photo cannot be read.
    """
    try:
        return file_hash(photo.path)
    except (OSError, ValueError) as error:  # ValueError: a name no file can have
        raise UserError(f"{photo.path}: no such photo, or it cannot be read") from error
