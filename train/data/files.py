"""What is known of the images of a run: content hash and size, kept between runs.

Hashing reads every byte of every image. An image is not read if `regionroute label` has written
what it holds, or if its length and times are those of the last look.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

import numpy as np
from tqdm import tqdm

from regionroute.data.startup.contents import Contents, FileFacts, read_facts
from regionroute.errors import UserError
from regionroute.files import atomic_write, text_hash

FILE = "files.npy"
FRESH = 2_000_000_000  # ns; a file changed this short before the look may change again unnoticed
COLUMNS = np.dtype(
    [
        ("path", "u8"),
        ("bytes", "i8"),
        ("modified", "i8"),
        ("changed", "i8"),
        ("content", "u8"),
        ("height", "i4"),
        ("width", "i4"),
    ]
)
Row: TypeAlias = tuple[int, int, int, int, int, int, int]


class Files:
    """Looks at images, each once.

    Args:
        folder: holds what is known between runs, 48 bytes an image, mapped and not read into
            memory; None: nothing is kept.
        data: folder of the data set, which may say what its images hold.
    """

    def __init__(self, folder: Path | None = None, data: Path | None = None) -> None:
        self._labelled = Contents(data) if data else None
        self.path = folder / FILE if folder else None
        self._known = _read(self.path)
        self._names = self._known["path"]
        self._new: dict[int, Row] = {}

    def of(self, path: Path) -> FileFacts:
        """An image's facts.

        Raises:
            UserError: it is missing, damaged or not an image.
        """
        name = int(text_hash(os.path.abspath(path)), 16)
        row = self._find(name)
        if row is None or row[1:4] != _times(path):
            row = self._look(name, path)
        return FileFacts(f"{row[4]:016x}", (row[5], row[6]))

    def look_at(self, paths: Iterable[Path], *, show: bool = False) -> None:
        """Looks at images ahead of time; errors are raised when the image is asked for."""
        for path in tqdm(paths, "hashing pictures", unit="picture", disable=not show, leave=False):
            try:
                self.of(path)
            except UserError:
                continue

    def news(self) -> np.ndarray:
        """What this process has learnt, for `learn` of others; [n] of `COLUMNS`."""
        return np.array([*self._new.values()], COLUMNS)

    def learn(self, rows: np.ndarray) -> None:
        """Takes over what another process has learnt."""
        self._new |= {row[0]: row for row in rows.tolist()}

    def save(self) -> None:
        """Keeps what is known, without what was changed a moment ago."""
        settled = time.time_ns() - FRESH
        new = self.news()
        new = new[(new["modified"] < settled) & (new["changed"] < settled)]
        if self.path is None or not len(new):
            return
        old = self._known[~np.isin(self._names, new["path"])]
        rows = np.sort(np.concatenate([old, new]), order="path")
        with atomic_write(self.path) as temporary:
            np.save(temporary, rows)

    def _find(self, name: int) -> Row | None:
        if name in self._new:
            return self._new[name]
        place = int(np.searchsorted(self._names, np.uint64(name)))
        if place < len(self._names) and int(self._names[place]) == name:
            return self._known[place].item()
        return None

    def _look(self, name: int, path: Path) -> Row:
        times = _times(path)  # before it is read: a file that changes meanwhile is read again
        facts = self._labelled.of(path) if self._labelled else None
        if facts is None:
            facts = read_facts(path)
        self._new[name] = (name, *times, int(facts.content, 16), *facts.size)
        return self._new[name]


def _times(path: Path) -> tuple[int, int, int]:
    """Length, time of the last change of the contents, and of anything; zeros if missing."""
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0, 0
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read(path: Path | None) -> np.ndarray:
    """What was kept; nothing if there is none or it is damaged: then files are looked at again."""
    try:
        rows = np.load(path, mmap_mode="r") if path else None
    except (OSError, ValueError, EOFError):
        rows = None
    if rows is None or rows.dtype != COLUMNS or rows.ndim != 1:
        return np.zeros(0, COLUMNS)
    return rows
