"""LoRA files: safetensors under diffusers' names, with PEFT's settings in the header."""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from regionroute.adapters.files.precision import computable
from regionroute.errors import UserError
from regionroute.files import atomic_write, check_input_file, parse_json

LONGEST_KEY = 500  # characters of a weight's name
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
    """Writes a safetensors file, complete or not at all; equal contents give equal bytes."""
    with atomic_write(path) as temporary:
        save_file(dict(state), temporary, {"format": "pt", **header})
        _sort_header(temporary)


def _sort_header(path: Path) -> None:
    """Sorts the texts of a file's header, whose order safetensors draws anew each time."""
    with open(path, "r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > length:  # never seen: the same JSON in another order
            raise RuntimeError(f"{path}: the sorted header is longer than safetensors'")
        file.seek(8)
        file.write(text.ljust(length))


def read_lora_file(path: Path, *, upcast: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of a safetensors LoRA file, and the settings diffusers stores in its header.

    Args:
        path: the file.
        upcast: return float8 as float16, which holds the same values and can be computed with.

    Raises:
        UserError: missing, damaged, or with weights that are no finite real numbers.
    """
    check_input_file(path, "LoRA file")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in list(file.keys())}
            header = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: this LoRA file is damaged, export it again ({error})") from error
    for key, tensor in tensors.items():
        if len(key) > LONGEST_KEY:
            raise UserError(f"{path}: the name {key[:60]!r}... is no weight's, export it again")
        _check_weights(tensor, key, path)
    if upcast:
        tensors = {key: computable(tensor) for key, tensor in tensors.items()}
    text = header.get(LORA_ADAPTER_METADATA_KEY, "{}")
    settings = parse_json(text, f"{path}: header {LORA_ADAPTER_METADATA_KEY}")
    if not isinstance(settings, dict):
        raise UserError(
            f"{path}: the settings in its header must be a JSON object, not {text[:60]!r}: "
            "export it again"
        )
    return tensors, settings


def _check_weights(tensor: Tensor, key: str, path: Path) -> None:
    whole = not tensor.is_floating_point() and not tensor.is_complex()
    alpha = key.endswith(".alpha") and whole and tensor.dtype != torch.bool
    if not tensor.is_floating_point() and not alpha:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise UserError(f'{path}: "{key}" is of type {kind}, expected floating-point numbers')
    if not torch.isfinite(tensor.float()).all():
        raise UserError(
            f'{path}: "{key}" holds values that are not finite (NaN or infinity): the training '
            "diverged or the file is damaged"
        )


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
