"""Results of the stages, cached in files named by a hash of everything they depend on.

The published code names them by image only and reuses them with other settings.
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
        folder: the folder, None for no cache.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def make(
        self, stage: str, facts: Any, make: Callable[[], Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Result of a stage: read from the cache, or computed and cached.

        Args:
            stage: name of the stage.
            facts: everything the result depends on, as plain values.
            make: computes the result.
        """
        known = self.read(stage, facts)
        if known is not None:
            return known
        made = dict(make())
        self.write(stage, facts, made)
        return made

    def read(self, stage: str, facts: Any) -> dict[str, Tensor] | None:
        """The cached result, None if there is none or its file is damaged."""
        path = self.path(stage, facts)
        if path is None or not path.is_file():
            return None
        try:
            found: dict[str, Tensor] = load_file(path)
        except (SafetensorError, OSError):
            return None
        return found

    def write(self, stage: str, facts: Any, tensors: Mapping[str, Tensor]) -> None:
        """Cache the result of a stage."""
        path = self.path(stage, facts)
        if path is None:
            return
        plain = {name: item.detach().cpu().contiguous() for name, item in tensors.items()}
        with atomic_write(path) as temporary:
            save_file(plain, temporary)

    def remove(self, stage: str, facts: Any) -> None:
        """Remove a result from the cache."""
        path = self.path(stage, facts)
        if path is not None:
            path.unlink(missing_ok=True)

    def path(self, stage: str, facts: Any) -> Path | None:
        """File of a result, None without a cache."""
        if self.folder is None:
            return None
        return self.folder / f"{stage}-{settings_hash([torch.__version__, facts])}.safetensors"
