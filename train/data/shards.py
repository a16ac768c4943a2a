"""Many cached entries in one safetensors file, which carries its own index and checksums.

Tensor ``keys`` holds the entries' keys, ``crc32`` their checksums, and ``<row>.<name>`` their
tensors. A file is written whole under a temporary name and named after the keys in it, so nobody
sees half of one, and it never changes.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from regionroute.errors import UserError
from regionroute.files import atomic_write

ENDING = ".safetensors"
FORMAT = "regionroute cache 1"
Tensors = dict[str, Tensor]


class Damaged(Exception):
    """A file that is cut short, changed, or none of ours."""


def write_shard(folder: Path, keys: Sequence[str], entries: Sequence[Tensors]) -> Path:
    """Writes entries into a new file of a folder.

    Args:
        folder: of this kind of entry; made if it is missing.
        keys: 16 hexadecimal digits each.
        entries: as many; tensors of any type, shape and device.

    Returns:
        The file.
    """
    plain = [
        {name: tensor.detach().cpu().contiguous() for name, tensor in entry.items()}
        for entry in entries
    ]
    tensors = {
        f"{row}.{name}": tensor for row, entry in enumerate(plain) for name, tensor in entry.items()
    }
    numbers = np.array([int(key, 16) for key in keys], np.uint64)
    tensors["keys"] = torch.from_numpy(numbers.view(np.int64))
    tensors["crc32"] = torch.tensor([checksum(entry) for entry in plain])
    path = folder / f"{sha256(numbers.tobytes()).hexdigest()[:16]}{ENDING}"
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={"format": FORMAT})
    return path


class Shard:
    """A file of entries, open for reading; its contents are mapped, not read.

    Args:
        path: the file.

    Raises:
        Damaged: it is cut short, none of ours, or not there.
        UserError: it may not be read.
    """

    def __init__(self, path: PurePath) -> None:
        try:
            self._file: Any = safe_open(path, framework="pt").__enter__()
            ours = (self._file.metadata() or {}).get("format") == FORMAT
        except PermissionError as error:
            raise UserError(f"{path}: no permission to read this cache file") from error
        except (SafetensorError, OSError, ValueError) as error:
            raise Damaged(str(error)) from error
        if not ours:
            raise Damaged("it was not written by this program")

    @cached_property
    def keys(self) -> np.ndarray:
        """Keys of the entries, [n] uint64."""
        return self._file.get_tensor("keys").numpy().view(np.uint64).copy()

    @cached_property
    def _rows(self) -> tuple[list[int], dict[int, list[str]]]:
        """Checksums, and for each row the names of its tensors."""
        names: dict[int, list[str]] = {}
        for full in self._file.keys():  # noqa: SIM118
            row, dot, name = full.partition(".")
            if dot:
                names.setdefault(int(row), []).append(name)
        return self._file.get_tensor("crc32").tolist(), names

    def read(self, row: int) -> Tensors:
        """The tensors of an entry.

        Raises:
            Damaged: they are not what was written.
        """
        sums, names = self._rows
        try:
            entry = {name: self._file.get_tensor(f"{row}.{name}") for name in names[row]}
        except (SafetensorError, OSError, KeyError) as error:
            raise Damaged(str(error)) from error
        if checksum(entry) != sums[row]:
            raise Damaged("its contents have changed")
        return entry


def checksum(entry: Tensors) -> int:
    """CRC-32 over names, types, shapes and bytes in the order of names."""
    crc = 0
    for name in sorted(entry):
        tensor = entry[name].contiguous()
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, crc)
    return crc
