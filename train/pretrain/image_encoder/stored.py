"""Files of composed images that were encoded once, with the settings they were made with."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from regionroute.files import atomic_write

Words = dict[str, list[list[str]]]  # split -> words of each image


def read_stored(path: Path, made_with: str) -> tuple[dict[str, Tensor], Words] | None:
    """Tensors and words of a file; None if it is missing, cut off or made with other settings."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("made with") != made_with:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, json.loads(metadata["words"])
    except SafetensorError:
        return None


def write_stored(path: Path, made_with: str, tensors: dict[str, Tensor], words: Words) -> None:
    """Write a file for `read_stored`; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"made with": made_with, "words": json.dumps(words)}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def first_masks(words: list[list[str]]) -> list[int]:
    """Place of each image's first mask among the masks of all words."""
    first, total = [], 0
    for row in words:
        first.append(total)
        total += len(row)
    return first
