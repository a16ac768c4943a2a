"""Hashes and sizes of a data set's images, which `regionroute label` writes when it makes them.

Training and `regionroute manifest pack` then read no image to know what it holds. The file is the
same whoever made the images. An image that is newer than the file, or of another length, is one
that it does not know.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from regionroute.data.images import image_size
from regionroute.files import atomic_write, file_hash, text_hash

FILE = "contents.npy"
COLUMNS = np.dtype(
    [("path", "<u8"), ("bytes", "<i8"), ("content", "<u8"), ("height", "<i4"), ("width", "<i4")]
)
REAL_TIMES = 8 * 10**17  # ns after 1970; times before 1995 are no times, see `regionroute.remote`


@dataclass(frozen=True)
class FileFacts:
    """An image's content hash and its (height, width) after EXIF rotation."""

    content: str
    size: tuple[int, int]


@dataclass(frozen=True)
class ImageContent:
    """What an image of a data set holds.

    Attributes:
        path: relative to the data set's folder, with forward slashes.
        bytes: length of the file.
        content: `regionroute.files.file_hash` of it.
        size: (height, width).
    """

    path: str
    bytes: int
    content: str
    size: tuple[int, int]


def read_facts(file: Path) -> FileFacts:
    """Read an image's facts.

    Raises:
        UserError: it is missing, damaged or not an image.
    """
    size = image_size(file)  # such a file is named before it is hashed
    return FileFacts(file_hash(file), size)


def read_content(folder: Path, path: str) -> ImageContent:
    """Read what an image of a data set holds; raises as `read_facts`."""
    facts = read_facts(folder / path)
    return ImageContent(path, (folder / path).stat().st_size, facts.content, facts.size)


def is_unchanged(file: Path, length: int, since: int) -> bool:
    """Whether a file has this length and no change after `since`, in ns after 1970."""
    try:
        found = os.stat(file)
    except OSError:
        return False
    return found.st_size == length and REAL_TIMES < found.st_mtime_ns <= since


def write_contents(file: Path, images: Iterable[ImageContent]) -> None:
    """Write what the images of a data set hold; the file's bytes depend on them alone."""
    rows = [
        (_name(image.path), image.bytes, int(image.content, 16), *image.size) for image in images
    ]
    with atomic_write(file) as temporary:
        np.save(temporary, np.sort(np.array(rows, COLUMNS), order="path"))


class Contents:
    """What is known of the images of a data set.

    Args:
        folder: of the data set; nothing is known if it has no such file, or a damaged one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, file: Path) -> FileFacts | None:
        """Facts of an image, None if it is not known or was changed."""
        rows, written = self._rows
        if not len(rows) or not file.is_relative_to(self.folder):
            return None
        name = _name(file.relative_to(self.folder).as_posix())
        place = int(np.searchsorted(rows["path"], np.uint64(name)))
        if place == len(rows) or int(rows["path"][place]) != name:
            return None
        _, length, content, height, width = rows[place].item()
        if not is_unchanged(file, length, written):
            return None
        return FileFacts(f"{content:016x}", (height, width))

    @cached_property
    def _rows(self) -> tuple[np.ndarray, int]:
        """The file's rows, mapped and not read into memory, and when it was written."""
        file = self.folder / FILE
        try:
            rows, written = np.load(file, mmap_mode="r"), file.stat().st_mtime_ns
        except (OSError, ValueError, EOFError):
            return np.zeros(0, COLUMNS), 0
        return (rows, written) if rows.dtype == COLUMNS and rows.ndim == 1 else (rows[:0], 0)


def _name(path: str) -> int:
    return int(text_hash(path), 16)
