"""LoRA files: safetensors under diffusers' names, with PEFT's settings in the header."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from regionroute.errors import UserError
from regionroute.files import atomic_write

PREFIX = "transformer."  # the pipeline part, by which diffusers sorts the keys of a LoRA file


def write_lora_file(
    path: Path, state: Mapping[str, Tensor], rank: int, alpha: float, modules: Sequence[str]
) -> None:
    """Writes a LoRA under diffusers' names, complete or not at all.

    Args:
        path: replaced if it is there.
        state: "transformer.<module>.lora_A.weight" [r,in] and "….lora_B.weight" [out,r].
        rank: r.
        alpha: by the header diffusers scales with exactly alpha/r, as PEFT does.
        modules: module names, without the prefix.
    """
    settings = {"r": rank, "lora_alpha": alpha, "target_modules": list(modules)}
    prefixed = {f"{PREFIX}{key}": value for key, value in settings.items()}
    header = {LORA_ADAPTER_METADATA_KEY: json.dumps(prefixed, sort_keys=True)}
    write_tensors(path, state, header)


def write_tensors(path: Path, state: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Writes a safetensors file, complete or not at all."""
    with atomic_write(path) as temporary:
        save_file(dict(state), temporary, {"format": "pt", **header})


def read_lora_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of a safetensors LoRA file, and the settings diffusers stores in its header.

    Raises:
        UserError: missing or damaged.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such LoRA file, check the path or export the experts again")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in list(file.keys())}
            header = file.metadata() or {}
        metadata = json.loads(header.get(LORA_ADAPTER_METADATA_KEY, "{}"))
    except (SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: this LoRA file is damaged, export it again ({error})") from error
    return tensors, metadata


def check_state(
    state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], source: str
) -> None:
    """Compares tensors with what a model has a place for.

    Args:
        state: tensors by key.
        shapes: what is wanted.
        source: names the state in errors, such as its file.

    Raises:
        UserError: a missing or an unexpected key, or another shape.
    """
    missing = [key for key in shapes if key not in state]
    if missing:
        raise UserError(f'{source}: {len(missing)} weights are missing, first "{missing[0]}"')
    unexpected = [key for key in state if key not in shapes]
    if unexpected:
        raise UserError(
            f"{source}: {len(unexpected)} weights have no place in the model, "
            f'first "{unexpected[0]}"'
        )
    for key, shape in shapes.items():
        if tuple(state[key].shape) != shape:
            raise UserError(f'{source}: "{key}" is {[*state[key].shape]}, expected {[*shape]}')
