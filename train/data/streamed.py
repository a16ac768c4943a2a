"""A cache at a URL, such as ``s3://bucket/cache``: whole files of it are held in memory.

The files are those of a local cache (safetensors, `train.data.shards`), read and written through
fsspec. Samples that follow each other in the manifest lie in the same files, so with an order in
blocks (`train.data.order.BlockShuffle`) each file is fetched about once an epoch. An index of each
kind's keys saves a start from reading every file's own.
"""

from __future__ import annotations

import json
import struct
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, TypeVar

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from regionroute.errors import StoreError, UserError
from regionroute.files import atomic_write
from regionroute.stores import attempt, connect
from train.data.cache import ASIDE, Cache, Kind
from train.data.shards import ENDING, FORMAT, Damaged, Shard, Tensors, write_shard

INDEX = f"index{ENDING}"
INDEX_FORMAT = "regionroute cache index 1"
LONGEST_HEADER = 100_000_000  # bytes, safetensors' own limit
Result = TypeVar("Result")


def is_url(name: str) -> bool:
    """Whether a cache of this name is streamed."""
    return "://" in name


def open_cache(name: str | None, default: Path, memory: float) -> Cache:
    """The cache of a run.

    Args:
        name: folder or URL; None: `default`.
        default: folder.
        memory: GB of a streamed cache's files to hold.

    Raises:
        UserError: the URL cannot be read.
    """
    if name is None or not is_url(name):
        return Cache(default if name is None else Path(name))
    return StreamedCache(name, int(memory * 1e9))


class StreamedCache(Cache):
    """`Cache` at a URL; threads may load from it at the same time.

    Args:
        url: of the folder, in any of fsspec's protocols. Credentials are what its library finds in
            the environment.
        memory: bytes of files to hold; the least recently used are dropped.

    Attributes:
        fetched: how many files were read so far.

    Raises:
        UserError: the protocol is unknown, or its library is not installed.
    """

    def __init__(self, url: str, memory: int) -> None:
        try:
            self._files_of, root = connect(url)
        except UserError as error:
            raise UserError(f"data.cache={error}") from error
        super().__init__(Path())
        self.folder = PurePosixPath(root)
        self.fetched = 0
        self._memory, self._held = memory, 0
        self._loaded: OrderedDict[PurePath, Future[_ShardInMemory]] = OrderedDict()
        self._indexed: dict[str, set[PurePath]] = {}

    def save_index(self) -> None:
        """Writes the index of each kind that has files which are not in it."""
        with self._lock:
            for kind, known in self._kinds.items():
                if known.paths and not set(known.paths) <= self._indexed.get(kind, set()):
                    self._put(self.folder / kind / INDEX, _index(known))
                    self._indexed[kind] = set(known.paths)

    def scan(self, kind: str) -> None:
        """Looks for files of a kind; the index says what most of them hold."""
        with self._lock:
            if kind not in self._kinds:
                self._read_index(kind)
        super().scan(kind)

    def _read_index(self, kind: str) -> None:
        path = self.folder / kind / INDEX
        try:
            known = _of_index(self._try(path, self._files_of.cat_file), self.folder / kind)
        except Damaged:
            return
        if self._files(kind).issuperset(known.paths):  # else it is older than the files
            self._kinds[kind] = known
            self._indexed[kind] = set(known.paths)

    def _files(self, kind: str) -> set[PurePath]:
        def listed(folder: str) -> list[str]:
            self._files_of.invalidate_cache()
            return list(self._files_of.ls(folder, detail=False))

        try:
            names = self._try(self.folder / kind, listed)
        except Damaged:
            return set()
        paths = {self.folder / kind / name.rsplit("/", 1)[-1] for name in names}
        ours = {path for path in paths if path.suffix == ENDING and path.name != INDEX}
        return {path for path in ours if path.name[0] != "."}

    def _keys(self, path: PurePath) -> np.ndarray:
        def read(name: str) -> np.ndarray:
            read_part = self._files_of.cat_file
            (length,) = struct.unpack("<Q", read_part(name, start=0, end=8))
            if length > LONGEST_HEADER:
                raise Damaged("it was not written by this program")
            header = json.loads(read_part(name, start=8, end=8 + length))
            if header.get("__metadata__", {}).get("format") != FORMAT:
                raise Damaged("it was not written by this program")
            first, last = (8 + length + end for end in header["keys"]["data_offsets"])
            data = read_part(name, start=first, end=last)
            if len(data) != last - first:
                raise Damaged("it is cut short")
            return np.frombuffer(data, np.uint64).copy()

        try:
            return self._try(path, read)
        except UserError:
            raise
        except (struct.error, ValueError, KeyError) as error:
            raise Damaged(str(error)) from error

    def _shard(self, path: PurePath) -> Shard:
        own: Future[_ShardInMemory] = Future()
        with self._lock:
            found = self._loaded.setdefault(path, own)
            self._loaded.move_to_end(path)
        if found is not own:  # another thread has it, or is fetching it
            return found.result()
        try:
            shard = _ShardInMemory(self._try(path, self._files_of.cat_file))
        except BaseException as error:
            with self._lock:
                del self._loaded[path]
            own.set_exception(error)
            raise
        own.set_result(shard)
        with self._lock:
            self.fetched += 1
            self._held += shard.bytes
            self._drop()
        return shard

    def _drop(self) -> None:
        """Drops the least recently used files that are too many, but the newest."""
        for path in list(self._loaded)[:-1]:
            if self._held <= self._memory:
                return
            if self._loaded[path].done():
                self._held -= self._loaded.pop(path).result().bytes

    def _shown(self, path: PurePath) -> str:
        return str(self._files_of.unstrip_protocol(str(path)))

    def _move_aside(self, path: PurePath) -> None:
        self._files_of.mv(str(path), str(path) + ASIDE)

    def _write(self, kind: str, keys: Sequence[str], entries: Sequence[Tensors]) -> PurePath:
        with tempfile.TemporaryDirectory() as folder:
            local = write_shard(Path(folder), keys, entries)
            path = self.folder / kind / local.name
            self._put(path, local.read_bytes())
        return path

    def _put(self, path: PurePath, data: bytes) -> None:
        """Writes a file, which nobody sees half of."""
        if "file" in self._files_of.protocol:
            with atomic_write(Path(path)) as temporary:
                temporary.write_bytes(data)
        else:  # an object store shows an object once all of it is there
            self._try(path, lambda name: self._files_of.pipe_file(name, data))

    def _try(self, path: PurePath, action: Callable[[str], Result]) -> Result:
        """Does something with a path; network errors are tried again.

        Raises:
            Damaged: the file is not there.
            UserError: every attempt failed, or there is no permission.
        """
        try:
            return attempt(self._shown(path), lambda: action(str(path)))
        except FileNotFoundError as error:
            raise Damaged("it is not there") from error
        except StoreError as error:
            raise UserError(f"{error.filename}: {error.strerror}") from error


class _ShardInMemory(Shard):
    """A file of entries, in memory.

    Attributes:
        bytes: of the file.
    """

    def __init__(self, data: bytes) -> None:
        self.bytes = len(data)
        try:
            self._file: Any = _Parsed(data)
        except (SafetensorError, ValueError, struct.error) as error:
            raise Damaged(str(error)) from error
        if self._file.metadata().get("format") != FORMAT:
            raise Damaged("it was not written by this program")


class _Parsed:
    """What `safetensors.safe_open` offers, of a file in memory."""

    def __init__(self, data: bytes) -> None:
        (length,) = struct.unpack("<Q", data[:8])
        self._metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
        self._tensors = safetensors.torch.load(data)

    def metadata(self) -> dict[str, str]:
        """The header's texts."""
        return self._metadata

    def keys(self) -> list[str]:
        """Names of the tensors."""
        return list(self._tensors)

    def get_tensor(self, name: str) -> torch.Tensor:
        """A tensor."""
        return self._tensors[name]


def _index(known: Kind) -> bytes:
    """Names of a kind's files, the keys of their entries, and where each is."""
    tensors = {"keys": known.keys.view(np.int64), "places": known.places}
    texts = {"format": INDEX_FORMAT, "files": json.dumps([path.name for path in known.paths])}
    return safetensors.torch.save({n: torch.from_numpy(t) for n, t in tensors.items()}, texts)


def _of_index(data: bytes, folder: PurePath) -> Kind:
    """What `_index` was made of; raises `Damaged`."""
    try:
        parsed = _Parsed(data)
        if parsed.metadata().get("format") != INDEX_FORMAT:
            raise Damaged("it was not written by this program")
        known = Kind()
        known.paths = [folder / name for name in json.loads(parsed.metadata()["files"])]
        known.keys = parsed.get_tensor("keys").numpy().view(np.uint64)
        known.places = parsed.get_tensor("places").numpy()
    except (SafetensorError, ValueError, KeyError, struct.error) as error:
        raise Damaged(str(error)) from error
    return known
