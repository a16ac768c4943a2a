"""Masks that somebody made already: a labels file of photos, words and mask files.

Two forms of rows, which may be mixed; file names are relative to the labels file:

    {"image": "dog.jpg", "objects": [{"word": "dog", "mask": "dog.mask0.png"}, ...]}
    {"file": "dog.jpg", "word": "dog", "mask": "dog_mask.png"}

Further keys (licence, origin, attribution, mask_source, ...) are kept as the photo's facts. What
is wrong with a row never stops the others: it becomes a `Rejection`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pseudo_labels.segment import Segment, merge_words
from regionroute.errors import UserError
from regionroute.io import file_hash, numbered_lines, parse_json_line, read_image, read_mask

_FACTS = ("licence", "license", "attribution", "origin")


@dataclass(frozen=True)
class Rejection:
    """Something that was left out, and why, in one sentence."""

    reason: str
    photo: str | None = None
    word: str | None = None
    style: str | None = None
    line: int | None = None


@dataclass(frozen=True)
class LabelledObject:
    """An object word and the file of its mask; `count` objects of that word are under it."""

    word: str
    mask: Path
    source: str = "given"
    count: int = 1


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


def read_labels(path: str | Path) -> tuple[list[LabelledPhoto], list[Rejection]]:
    """Read a labels file; rows of one photo are put together.

    Args:
        path: JSON-lines file in one of the two forms, or both.

    Returns:
        Photos in order of first appearance, and the rows that cannot be used.

    Raises:
        UserError: there is no such file, or it is not text.
    """
    path = Path(path)
    photos: dict[str, LabelledPhoto] = {}
    rejected: list[Rejection] = []
    for number, line in numbered_lines(path):
        try:
            photo = _parse_row(path, number, parse_json_line(path, number, line))
        except UserError as error:
            rejected.append(Rejection(str(error), line=number))
            continue
        known = photos.get(photo.name)
        if known is not None:
            objects = (*known.objects, *photo.objects)
            photo = LabelledPhoto(known.name, known.path, known.line, objects, known.facts)
        photos[photo.name] = photo
    return list(photos.values()), rejected


def _parse_row(path: Path, number: int, row: Mapping[str, Any]) -> LabelledPhoto:
    where = f"{path}:{number}"
    if "image" in row:
        name, objects = row["image"], row.get("objects")
        if not isinstance(objects, list) or not objects:
            raise UserError(f"{where}: 'objects' must be a list of words and masks, at least one")
    elif "file" in row:
        name, objects = row["file"], [row]
    else:
        raise UserError(f"{where}: a row names its photo by 'image' or by 'file'")
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}: the photo's name must be text")
    source = row.get("mask_source", "given")
    parsed = tuple(_parse_object(where, entry, path.parent, str(source)) for entry in objects)
    facts = {key: row[key] for key in _FACTS if key in row}
    return LabelledPhoto(Path(name).as_posix(), path.parent / name, number, parsed, facts)


def _parse_object(where: str, entry: Any, folder: Path, source: str) -> LabelledObject:
    if not isinstance(entry, Mapping):
        raise UserError(f"{where}: an object must be written {{'word': ..., 'mask': ...}}")
    for key in ("word", "mask"):
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            raise UserError(f"{where}: an object needs '{key}', some text")
    count = entry.get("instances", 1)
    if not isinstance(count, int) or count < 1:
        raise UserError(f"{where}: 'instances' must be a whole number from 1")
    word = " ".join(entry["word"].split())
    return LabelledObject(word, folder / entry["mask"], source, count)


def open_photo(photo: LabelledPhoto) -> tuple[Tensor, list[Segment], list[Rejection]]:
    """Read a photo and its masks.

    Args:
        photo: one of `read_labels`.

    Returns:
        Picture [3, H, W] in [0, 1]; one segment a word (several masks of one word are united), at
        the picture's size; and the objects whose masks cannot be used.

    Raises:
        UserError: the photo itself is missing or damaged.
    """
    image = read_image(photo.path)
    size = (image.shape[-2], image.shape[-1])
    segments: list[Segment] = []
    rejected: list[Rejection] = []
    for item in photo.objects:
        try:
            mask = read_mask(item.mask, size)
            if not mask.any():
                raise UserError(f"{item.mask}: the mask is empty, no pixel reaches 128 of 255")
        except (UserError, OSError) as error:
            rejected.append(Rejection(str(error), photo.name, item.word, line=photo.line))
            continue
        segments.append(Segment(item.word, mask, source=item.source, count=item.count))
    return image, merge_words(segments), rejected


def content_hash(photo: LabelledPhoto) -> str:
    """Hash of the photo's bytes.

    Raises:
        UserError: the photo cannot be read.
    """
    try:
        return file_hash(photo.path)
    except (OSError, ValueError) as error:  # ValueError: a name no file can have
        raise UserError(f"{photo.path}: no such photo, or it cannot be read") from error
