"""Tensors on disk, many entries a safetensors file, named by what they were computed from.

An entry's key is a hash of its inputs (file contents, base model, size), never a position, so
entries are right whatever the order of the data, and are shared by runs, ranks and samples. Every
file carries its own index (`train.data.shards`): there is no other that could disagree with it.
"""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from threading import RLock
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from regionroute.errors import UserError
from train.data.shards import ENDING, Damaged, Shard, Tensors, write_shard

SHARD_BYTES = 128 * 2**20  # of tensors in a file, about
SHARD_ENTRIES = 1024
SHARD_SECONDS = 30.0  # of work at most that an interruption loses
OPEN_SHARDS = 256  # files kept open
ASIDE = ".damaged"


@dataclass(frozen=True)
class CacheEntry:
    """One thing to be cached: `kind` is its folder, `make` computes it from its inputs.

    `key` has 16 hexadecimal digits.
    """

    kind: str
    key: str
    make: Callable[[], Tensors]


class Kind:
    """Where the entries of one kind lie: sorted keys, and the file and row of each."""

    def __init__(self) -> None:
        self.paths: list[PurePath] = []
        self.keys = np.zeros(0, np.uint64)
        self.places = np.zeros(0, np.int64)  # file << 32 | row

    def add(self, found: Sequence[tuple[PurePath, np.ndarray]]) -> None:
        """Takes in the entries of further files."""
        keys, places = [self.keys], [self.places]
        for path, own in found:
            keys.append(own)
            places.append((len(self.paths) << 32) + np.arange(len(own), dtype=np.int64))
            self.paths.append(path)
        together = np.concatenate(keys)
        self.keys, first = np.unique(together, return_index=True)
        self.places = np.concatenate(places)[first]

    def find(self, key: str) -> tuple[PurePath, int] | None:
        """File and row of an entry."""
        number = np.uint64(int(key, 16))
        at = int(np.searchsorted(self.keys, number))
        if at == len(self.keys) or self.keys[at] != number:
            return None
        place = int(self.places[at])
        return self.paths[place >> 32], place & 0xFFFFFFFF


class Cache:
    """Reads and writes entries below one folder.

    Attributes:
        remarks: sentences about damaged files that were set aside.
    """

    def __init__(self, folder: Path) -> None:
        self.folder: PurePath = Path(folder)
        self.remarks: list[str] = []
        self._kinds: dict[str, Kind] = {}
        self._open: OrderedDict[PurePath, Shard] = OrderedDict()
        self._lock = RLock()

    @property
    def name(self) -> str:
        """The folder, for messages."""
        return self._shown(self.folder)

    def save_index(self) -> None:
        """Makes the next start faster; a local cache needs nothing for it."""

    def scan(self, kind: str) -> None:
        """Looks for files of a kind that are not known yet; damaged ones are set aside."""
        with self._lock:
            known = self._kinds.setdefault(kind, Kind())
            self._take_in(kind, sorted(self._files(kind).difference(known.paths)))

    def _files(self, kind: str) -> set[PurePath]:
        """The files of a kind."""
        return {p for p in Path(self.folder / kind).glob(f"*{ENDING}") if p.name[0] != "."}

    def _keys(self, path: PurePath) -> np.ndarray:
        """Keys of a file's entries, [n] uint64; raises `Damaged`."""
        return Shard(path).keys

    def _take_in(self, kind: str, paths: Iterable[PurePath]) -> None:
        found = []
        for path in paths:
            try:
                found.append((path, self._keys(path)))
            except Damaged as damage:
                self.remarks.append(f"{self._aside(path, damage)}, what it held is encoded again")
        self._kinds.setdefault(kind, Kind()).add(found)

    def absent(self, kind: str, keys: Iterable[str] | np.ndarray) -> np.ndarray:
        """Those of some keys that no file holds, each once: sorted uint64."""
        self.scan(kind)
        if not isinstance(keys, np.ndarray):
            keys = np.array([int(key, 16) for key in keys], np.uint64)
        return np.setdiff1d(keys, self._kinds[kind].keys)

    def load(self, kind: str, key: str) -> Tensors:
        """The tensors of an entry that `fill` has provided.

        Raises:
            UserError: the file was damaged or removed since.
        """
        with self._lock:
            place = self._place(kind, key)
            if place is None:
                self.scan(kind)
                place = self._place(kind, key)
        if place is None:
            raise UserError(
                f"{self._shown(self.folder / kind)}: the cache lacks entry {key}, its file was "
                "removed during the run: start the same command again and it is rebuilt"
            )
        path, row = place
        try:
            return self._shard(path).read(row)
        except Damaged as damage:
            raise UserError(
                f"{self._aside(path, damage)}: start the same command again and it is rebuilt"
            ) from damage

    def _place(self, kind: str, key: str) -> tuple[PurePath, int] | None:
        return self._kinds.setdefault(kind, Kind()).find(key)

    def _shard(self, path: PurePath) -> Shard:
        """A file, open for reading; raises `Damaged`."""
        with self._lock:
            if path not in self._open:
                self._open[path] = Shard(path)
                if len(self._open) > OPEN_SHARDS:
                    self._open.popitem(last=False)
            self._open.move_to_end(path)
            return self._open[path]

    def _shown(self, path: PurePath) -> str:
        """A path for messages."""
        return str(path)

    def _move_aside(self, path: PurePath) -> None:
        """Renames a damaged file; raises OSError."""
        Path(path).replace(path.with_name(path.name + ASIDE))

    def _write(self, kind: str, keys: Sequence[str], entries: Sequence[Tensors]) -> PurePath:
        """Writes entries into a new file, whose path it gives."""
        return write_shard(Path(self.folder / kind), keys, entries)

    def _aside(self, path: PurePath, damage: Damaged) -> str:
        """Puts a damaged file out of the way; what happened, in words."""
        with contextlib.suppress(OSError):  # another process was faster
            self._move_aside(path)
        return f"{self._shown(path)}: this cache file is damaged ({damage}) and now ends in {ASIDE}"

    def fill(
        self,
        entries: Iterable[CacheEntry],
        *,
        only: Mapping[str, np.ndarray] | None = None,
        show: bool = True,
    ) -> list[tuple[str, PurePath]]:
        """Computes entries that are absent and writes them.

        Each entry is computed by itself: in a batch, its last bits would depend on neighbours.
        What is done is kept when something fails or somebody stops it.

        Args:
            entries: repeated keys are computed once.
            only: by kind the sorted keys of this process's share; None: all that are absent.
            show: whether there is a progress bar.

        Returns:
            Kind and name of every file written.
        """
        if only is None:
            entries = list(entries)
            kinds = {entry.kind for entry in entries}
            only = {k: self.absent(k, [e.key for e in entries if e.kind == k]) for k in kinds}
        left = {kind: set(keys.tolist()) for kind, keys in only.items()}
        writer = _Writer(self._write)
        total = sum(map(len, left.values()))
        with tqdm(total=total, desc="encoding", unit="file", disable=not (show and total)) as bar:
            try:
                self._compute(entries, left, writer, bar)
            finally:
                writer.flush()
                self.adopt(writer.written)
        return writer.written

    def _compute(
        self,
        entries: Iterable[CacheEntry],
        left: dict[str, set[int]],
        writer: _Writer,
        bar: tqdm[Any],
    ) -> None:
        if not any(left.values()):
            return
        for entry in entries:
            wanted, number = left.get(entry.kind, set()), int(entry.key, 16)
            if number not in wanted:
                continue
            with torch.no_grad():
                writer.add(entry.kind, entry.key, entry.make())
            wanted.remove(number)
            bar.update()
            if not any(left.values()):
                return
        raise UserError(
            f"{sum(map(len, left.values()))} images or masks were changed since the manifest was "
            "packed, run `regionroute manifest pack` again"
        )

    def adopt(self, written: Iterable[tuple[str, PurePath]]) -> None:
        """Takes in files that this or another process wrote, without listing the folder.

        On network disks a listing may be old; a name that is asked for is not.
        """
        with self._lock:
            for kind, path in written:
                if path not in self._kinds.setdefault(kind, Kind()).paths:
                    self._take_in(kind, [path])


class _Writer:
    """Collects entries of several kinds into files, which `write` writes: `Cache._write`."""

    def __init__(self, write: Callable[[str, Sequence[str], Sequence[Tensors]], PurePath]) -> None:
        self._write_file = write
        self.written: list[tuple[str, PurePath]] = []
        self._waiting: dict[str, tuple[list[str], list[Tensors]]] = {}
        self._bytes: dict[str, int] = {}
        self._since = time.monotonic()

    def add(self, kind: str, key: str, entry: Tensors) -> None:
        """Adds an entry; writes the file when there is enough for one."""
        keys, entries = self._waiting.setdefault(kind, ([], []))
        keys.append(key)
        entries.append({name: tensor.cpu() for name, tensor in entry.items()})
        self._bytes[kind] = self._bytes.get(kind, 0) + sum(t.nbytes for t in entry.values())
        if self._bytes[kind] >= SHARD_BYTES or len(keys) >= SHARD_ENTRIES:
            self._write(kind)
        elif time.monotonic() - self._since >= SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what is waiting."""
        for kind in list(self._waiting):
            self._write(kind)
        self._since = time.monotonic()

    def _write(self, kind: str) -> None:
        keys, entries = self._waiting.pop(kind)
        self._bytes.pop(kind)
        self.written.append((kind, self._write_file(kind, keys, entries)))
