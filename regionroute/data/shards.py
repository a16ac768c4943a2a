"""The rows of a manifest in several files: found by their positions, parsed when asked for.

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
from pathlib import Path
from typing import Protocol, TypeVar, overload

import numpy as np

from regionroute.errors import UserError

BOM = b"\xef\xbb\xbf"
OPEN_FILES = 64


class Named(Protocol):
    """A row with an id."""

    @property
    def id(self) -> str:
        """Unique in the manifest."""


Row = TypeVar("Row", bound=Named)


class ShardedRows(Sequence[Row]):
    """Rows of several files, in the order of the files.

    Every row is parsed once here, so that a mistake shows before the work, and forgotten.

    Args:
        files: JSON-lines files.
        parse: makes a row of a line; file and line number are for its errors.

    Raises:
        UserError: naming file and line, for a row that is not right or an id used twice.
    """

    def __init__(self, files: Sequence[Path], parse: Callable[[Path, int, str], Row]) -> None:
        self.files, self._parse = list(files), parse
        self._first = [0]  # row with which each file begins, and the end
        self._offsets = array("q")
        self._bytes: list[int] = []
        self._handle = lru_cache(maxsize=OPEN_FILES)(self._open)
        names = array("Q")
        for file in self.files:
            for offset, number, line in _lines(file):
                sample = self._parse(file, number, _text(file, line))
                self._offsets.append(offset)
                digest = hashlib.blake2b(sample.id.encode(), digest_size=8).digest()
                names.append(int.from_bytes(digest, "big"))
            self._first.append(len(self._offsets))
            self._bytes.append(os.path.getsize(file))
        self._refuse_twins(np.frombuffer(names, np.uint64) if names else np.zeros(0, np.uint64))

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
        offset, last = self._offsets[row], row + 1 == self._first[shard + 1]
        end = self._bytes[shard] if last else self._offsets[row + 1]
        handle, file = self._handle(shard), self.files[shard]
        line = os.pread(handle.fileno(), end - offset, offset)
        return self._parse(file, row - self._first[shard] + 1, _text(file, line))

    def __iter__(self) -> Iterator[Row]:
        for file in self.files:
            for _, number, line in _lines(file):
                yield self._parse(file, number, _text(file, line))

    def _open(self, shard: int) -> FileIO:
        return FileIO(self.files[shard])


def _lines(file: Path) -> Iterator[tuple[int, int, bytes]]:
    """Offset, number from 1, and bytes of every line that is not empty."""
    offset = 0
    with file.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            start = len(BOM) if number == 1 and line.startswith(BOM) else 0
            if line[start:].strip():
                yield offset + start, number, line[start:]
            offset += len(line)


def _text(file: Path, line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: this is not UTF-8 text, save it as UTF-8") from error
