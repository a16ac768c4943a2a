"""The files of a manifest; the rows of several are found by their positions, parsed when asked for.

A row of ten million costs eight bytes of memory in place of an object.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from io import FileIO
from itertools import accumulate
from pathlib import Path
from typing import Protocol, TypeVar, overload

import numpy as np

from regionroute.errors import UserError
from regionroute.files import AnyPath

FILE_NAME = "manifest.jsonl"
SHARDS = "manifest-*.jsonl"
BOM = b"\xef\xbb\xbf"
OPEN_FILES = 64


def manifest_file(path: AnyPath) -> Path:
    """The manifest's file, or of one in several files their pattern; see `manifest_files`."""
    path = Path(path)
    if path.suffix == ".jsonl":
        return path
    single = path / FILE_NAME
    return path / SHARDS if not single.exists() and any(path.glob(SHARDS)) else single


def manifest_files(path: AnyPath) -> list[Path]:
    """The files of a manifest, in their order; a single one need not exist.

    Args:
        path: ``manifest.jsonl``, its folder, or a pattern such as ``data/manifest-0*.jsonl``.

    Raises:
        UserError: no file matches the pattern, or a folder holds both forms.
    """
    file = manifest_file(path)
    if not set(file.name) & set("*?[") or file.exists():
        if Path(path).suffix != ".jsonl" and file.exists() and any(file.parent.glob(SHARDS)):
            raise UserError(
                f"{path}: holds {FILE_NAME} and {SHARDS}: name the one to use, or remove the other"
            )
        return [file]
    files = sorted(file.parent.glob(file.name))
    if not files:
        raise UserError(f"{file}: no manifest matches this pattern, check the path")
    return files


def has_manifest(path: AnyPath) -> bool:
    """Whether a manifest, of one file or several, is there."""
    file = manifest_file(path)
    return file.is_file() or any(file.parent.glob(file.name))


class Named(Protocol):
    """A row with an id."""

    @property
    def id(self) -> str:
        """Unique in the manifest."""


Row = TypeVar("Row", bound=Named)


class ShardedRows(Sequence[Row]):
    """Rows of several files, in the order of the files.

    Every row is parsed once here, so that a mistake shows before the work, and forgotten; not if
    the rows are known.

    Args:
        files: JSON-lines files.
        parse: makes a row of a line; file and line number are for its errors.
        known: rows of each file, offset of each row in its file, `row_name` of each row's id.

    Raises:
        UserError: naming file and line, for a row that is not right or an id used twice.
    """

    def __init__(
        self,
        files: Sequence[Path],
        parse: Callable[[Path, int, str], Row],
        known: tuple[Sequence[int], np.ndarray, np.ndarray] | None = None,
    ) -> None:
        self.files, self._parse = list(files), parse
        self._bytes = [os.path.getsize(file) for file in self.files]
        self._handle = lru_cache(maxsize=OPEN_FILES)(self._open)
        counts, self._offsets, names = self._read() if known is None else known
        self._first = [0, *accumulate(counts)]  # row with which each file begins, and the end
        self._refuse_twins(names)

    def _read(self) -> tuple[list[int], np.ndarray, np.ndarray]:
        """Rows of each file, the offset of each row, and its name."""
        counts, offsets, names = [], array("q"), array("Q")
        for file in self.files:
            before = len(offsets)
            for offset, number, line in lines_of(file):
                offsets.append(offset)
                names.append(row_name(self._parse(file, number, text_of(file, line)).id))
            counts.append(len(offsets) - before)
        return counts, np.array(offsets, np.int64), np.array(names, np.uint64)

    def _refuse_twins(self, names: np.ndarray) -> None:
        order = np.argsort(names, kind="stable")
        alike = np.flatnonzero(names[order][1:] == names[order][:-1])
        for place in alike.tolist():
            first, second = int(order[place]), int(order[place + 1])
            if self[first].id == self[second].id:
                raise UserError(
                    f"{self._where(second)}: id {self[second].id!r} was used in "
                    f"{self._where(first)} already, ids must be unique"
                )

    def _where(self, row: int) -> Path:
        return self.files[bisect_right(self._first, row) - 1]

    def __len__(self) -> int:
        return len(self._offsets)

    @overload
    def __getitem__(self, row: int) -> Row: ...
    @overload
    def __getitem__(self, row: slice) -> list[Row]: ...
    def __getitem__(self, row: int | slice) -> Row | list[Row]:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        row %= len(self)
        shard = bisect_right(self._first, row) - 1
        offset, last = int(self._offsets[row]), row + 1 == self._first[shard + 1]
        end = self._bytes[shard] if last else int(self._offsets[row + 1])
        handle, file = self._handle(shard), self.files[shard]
        line = os.pread(handle.fileno(), end - offset, offset)
        return self._parse(file, row - self._first[shard] + 1, text_of(file, line))

    def __iter__(self) -> Iterator[Row]:
        for file in self.files:
            for _, number, line in lines_of(file):
                yield self._parse(file, number, text_of(file, line))

    def _open(self, shard: int) -> FileIO:
        return FileIO(self.files[shard])


def row_name(row_id: str) -> int:
    """64 bits that distinguish ids."""
    return int.from_bytes(hashlib.blake2b(row_id.encode(), digest_size=8).digest(), "big")


def lines_of(file: Path) -> Iterator[tuple[int, int, bytes]]:
    """Offset, number from 1, and bytes of every line that is not empty."""
    offset = 0
    with file.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            start = len(BOM) if number == 1 and line.startswith(BOM) else 0
            if line[start:].strip():
                yield offset + start, number, line[start:]
            offset += len(line)


def text_of(file: Path, line: bytes) -> str:
    """A line as text.

    Raises:
        UserError: it is not UTF-8.
    """
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: this is not UTF-8 text, save it as UTF-8") from error
