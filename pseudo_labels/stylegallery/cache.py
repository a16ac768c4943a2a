"""Products of the stages, kept in files named by a hash of all that they depend on.

The published code keeps them by file name only, and takes old ones for other settings.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from regionroute.files import atomic_write, settings_hash


def tensor_hash(tensor: Tensor) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a tensor's shape and bytes."""
    array = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{array.dtype} {list(array.shape)}".encode())
    digest.update(array.numpy().tobytes())
    return digest.hexdigest()[:16]


class StageCache:
    """Files of tensors in a folder.

    Args:
        folder: where; None: nothing is kept.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def make(
        self, stage: str, facts: Any, make: Callable[[], Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """What a stage gives: read if it is there, else made and kept.

        Args:
            stage: its name.
            facts: everything it depends on, as plain values.
            make: makes it.
        """
        known = self.read(stage, facts)
        if known is not None:
            return known
        made = dict(make())
        self.write(stage, facts, made)
        return made

    def read(self, stage: str, facts: Any) -> dict[str, Tensor] | None:
        """What was kept, None if nothing was or the file is damaged."""
        path = self.path(stage, facts)
        if path is None or not path.is_file():
            return None
        try:
            found: dict[str, Tensor] = load_file(path)
        except (SafetensorError, OSError):
            return None
        return found

    def write(self, stage: str, facts: Any, tensors: Mapping[str, Tensor]) -> None:
        """Keeps what a stage gave."""
        path = self.path(stage, facts)
        if path is None:
            return
        plain = {name: item.detach().cpu().contiguous() for name, item in tensors.items()}
        with atomic_write(path) as temporary:
            save_file(plain, temporary)

    def remove(self, stage: str, facts: Any) -> None:
        """Forgets it."""
        path = self.path(stage, facts)
        if path is not None:
            path.unlink(missing_ok=True)

    def path(self, stage: str, facts: Any) -> Path | None:
        """The file, None without a folder."""
        if self.folder is None:
            return None
        return self.folder / f"{stage}-{settings_hash([torch.__version__, facts])}.safetensors"
