"""What somebody knows already: a labels file of photos, words, masks, outlines and boxes.

Rows of JSON, whose forms may be mixed; file names are relative to the labels file:

    {"image": "dog.jpg", "objects": [{"word": "dog", "mask": "dog.mask0.png"}, ...]}
    {"file": "dog.jpg", "word": "dog", "mask": "dog_mask.png"}
    {"file_name": "dog.jpg", "text": "...", "attn_list": [["dog", "dog_mask.png"], ...]}

The last is TokenCompose's grounded COCO. In place of "mask" an object may have "segmentation"
(COCO's polygons or run lengths), "bbox" (COCO's [x, y, width, height]: it is cut out of the box) or
nothing (it is looked for by its word). A file ending in .json is an instances file of COCO.

Further keys (licence, origin, attribution, mask_source, ...) are kept as the photo's facts. What
is wrong with a row never stops the others: it becomes a `Rejection`.
"""

import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from pseudo_labels.segment import Box, Segment
from pseudo_labels.segment.coco import coco_rows, corner_box, outline_mask
from regionroute.data.images import image_size, read_image, read_mask
from regionroute.errors import UserError
from regionroute.files import file_hash, numbered_lines, parse_json_line

_FACTS = ("licence", "license", "attribution", "origin")
MOST_PIXELS = 100_000_000  # of a photo: what a camera makes; more is a mistake or an attack


@dataclass(frozen=True)
class Rejection:
    """Something that was left out, and why, in one sentence; `checks`: what was measured."""

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
        box: (y0, x0, y1, x1) around it.
        outline: COCO's "segmentation", as JSON.
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
        path: where it lies.
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
    photos: dict[str, LabelledPhoto] = {}
    rejected: list[Rejection] = []
    for number, row in _rows(path):
        try:
            if isinstance(row, UserError):
                raise row
            photo = _parse_row(path, number, row, path.parent if folder is None else Path(folder))
        except UserError as error:
            rejected.append(Rejection(str(error), line=number))
            continue
        known = photos.get(photo.name)
        if known is not None:
            objects = (*known.objects, *photo.objects)
            photo = LabelledPhoto(known.name, known.path, known.line, objects, known.facts)
        photos[photo.name] = photo
    return list(photos.values()), rejected


def _rows(path: Path) -> Iterable[tuple[int, Mapping[str, Any] | UserError]]:
    if path.suffix == ".json":
        yield from enumerate(coco_rows(path), start=1)
        return
    for number, line in numbered_lines(path):
        try:
            yield number, parse_json_line(path, number, line)
        except UserError as error:
            yield number, error


def list_photos(
    folder: str | Path, words: Iterable[str], skip: Path | None = None
) -> tuple[list[LabelledPhoto], list[Rejection]]:
    """The photos of a folder and its sub-folders, each to be searched for the same words.

    Args:
        folder: where the photos lie.
        words: object words.
        skip: a folder in it that is left alone, such as that of the results.

    Returns:
        Photos in the order of their names, and files that are none; hidden ones go unmentioned.

    Raises:
        UserError: no such folder, or no photo in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of photos, check the path")
    Image.init()
    objects = tuple(LabelledObject(" ".join(word.split())) for word in words)
    photos, rejected = [], []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        if hidden or path.is_dir() or (skip is not None and path.is_relative_to(skip)):
            continue
        if path.suffix.lower() in Image.EXTENSION:
            photos.append(LabelledPhoto(relative.as_posix(), path, 0, objects))
        else:
            reason = f"{path}: this is not a photo by the ending of its name, it is left out"
            rejected.append(Rejection(reason, relative.as_posix()))
    if not photos:
        raise UserError(f"{folder}: there is no photo in this folder")
    return photos, rejected


def _parse_row(path: Path, number: int, row: Mapping[str, Any], folder: Path) -> LabelledPhoto:
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
    source = row.get("mask_source", "given")
    parsed = tuple(_parse_object(where, entry, folder, str(source)) for entry in objects)
    facts = {key: row[key] for key in _FACTS if key in row}
    return LabelledPhoto(Path(name).as_posix(), folder / name, number, parsed, facts)


def _grounded(where: str, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The objects of a row of TokenCompose's grounded COCO."""
    pairs = row.get("attn_list")
    if not isinstance(pairs, list) or not pairs:
        raise UserError(f"{where}: 'attn_list' must be a list of [word, mask], at least one")
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise UserError(f"{where}: 'attn_list' must hold pairs [word, mask]")
    return [{"word": word, "mask": mask} for word, mask in pairs]


def _parse_object(where: str, entry: Any, folder: Path, source: str) -> LabelledObject:
    if not isinstance(entry, Mapping):
        raise UserError(f"{where}: an object must be written {{'word': ..., 'mask': ...}}")
    _need_text(where, entry, "word")
    if "mask" in entry:
        _need_text(where, entry, "mask")
    count = entry.get("instances", 1)
    if not isinstance(count, int) or count < 1:
        raise UserError(f"{where}: 'instances' must be a whole number from 1")
    outline = entry.get("segmentation")
    try:
        box = corner_box(entry["bbox"]) if "bbox" in entry else None
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return LabelledObject(
        " ".join(entry["word"].split()),
        folder / entry["mask"] if "mask" in entry else None,
        source,
        count,
        box,
        json.dumps(outline) if outline is not None else None,
    )


def _need_text(where: str, entry: Mapping[str, Any], key: str) -> None:
    if not isinstance(entry.get(key), str) or not entry[key].strip():
        raise UserError(f"{where}: an object needs '{key}', some text")


def open_photo(photo: LabelledPhoto) -> tuple[Tensor, list[Segment], list[Rejection]]:
    """Read a photo and the masks and outlines that are given for it.

    Args:
        photo: one of `read_labels`.

    Returns:
        Picture [3, H, W] in [0, 1]; a segment for each object whose pixels are known, at the
        picture's size; and the objects whose masks cannot be used.

    Raises:
        UserError: the photo itself is missing, damaged or too large.
    """
    image = read_photo(photo.path)
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


def read_photo(path: Path) -> Tensor:
    """As `regionroute.data.images.read_image`, refusing what would fill the memory.

    Raises:
        UserError: the photo is missing, damaged or too large.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # ours is the lower limit
        height, width = image_size(path)
        if height * width > MOST_PIXELS:
            raise UserError(
                f"{path}: {width}x{height} pixels are too many, the most are "
                f"{MOST_PIXELS / 1e6:.0f} million: scale it down first"
            )
        return read_image(path)


def _object_mask(item: LabelledObject, size: tuple[int, int], photo: LabelledPhoto) -> Tensor:
    if item.mask is not None:
        mask, where = read_mask(item.mask, size), str(item.mask)
    else:
        where = f"{photo.path}: the outline of the {item.word}"
        try:
            mask = outline_mask(json.loads(item.outline or ""), size)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    if not mask.any():
        raise UserError(f"{where}: the mask is empty, no pixel reaches 128 of 255")
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
