"""Tensors on disk, one safetensors file an entry, named by what they were computed from.

An entry's key is a hash of its inputs (file contents, base model, size), never a position, so
entries are right whatever the order of the data, and are shared by runs, ranks and samples.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from regionroute.errors import UserError
from regionroute.io import atomic_write

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Entry:
    """One thing to be cached: `kind` is its folder, `make` computes it from its inputs."""

    kind: str
    key: str
    make: Callable[[], Tensors]


class Cache:
    """Reads and writes entries below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def path(self, kind: str, key: str) -> Path:
        """Where an entry lies; spread over sub-folders, which many file systems need."""
        return self.folder / kind / key[:2] / f"{key}.safetensors"

    def read(self, kind: str, key: str) -> Tensors | None:
        """The tensors of an entry, or None if it is absent, cut short or damaged."""
        path = self.path(kind, key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                expected = (file.metadata() or {}).get("crc32")
        except (SafetensorError, OSError, ValueError):
            return None
        return tensors if expected == _checksum(tensors) else None

    def load(self, kind: str, key: str) -> Tensors:
        """The tensors of an entry that `fill` has provided.

        Raises:
            UserError: the file was damaged or removed since.
        """
        tensors = self.read(kind, key)
        if tensors is None:
            raise UserError(
                f"{self.path(kind, key)}: this cache file was damaged or removed during the run, "
                "start the same command again and it is rebuilt"
            )
        return tensors

    def write(self, kind: str, key: str, tensors: Tensors) -> None:
        """Stores an entry; a reader sees the whole of it or nothing."""
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        with atomic_write(self.path(kind, key)) as temporary:
            save_file(plain, temporary, metadata={"crc32": _checksum(plain)})

    def fill(
        self, entries: Sequence[Entry], *, rank: int = 0, world: int = 1, title: str = "caching"
    ) -> int:
        """Verifies this process's share of the entries and computes those absent or damaged.

        Each entry is computed by itself: in a batch, its last bits would depend on neighbours.

        Args:
            entries: the same sequence on every process; repeated keys are computed once.
            rank: number of this process; it takes every `world`-th entry.
            world: how many processes share the work.
            title: of the progress bar, which only process 0 shows.

        Returns:
            How many entries this process computed.
        """
        unique = list({(entry.kind, entry.key): entry for entry in entries}.values())
        share, computed = unique[rank::world], 0
        bar = tqdm(share, desc=title, unit="file", disable=rank > 0, leave=False)
        for entry in bar:
            if self.read(entry.kind, entry.key) is None:
                with torch.no_grad():
                    self.write(entry.kind, entry.key, entry.make())
                computed += 1
                bar.set_postfix(computed=computed, refresh=False)
        return computed


def _checksum(tensors: Tensors) -> str:
    """CRC-32 over names, types, shapes and bytes in the order of names."""
    crc = 0
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"
