"""Transformers whose linear layers are stored in 4 bits (nf4), as bitsandbytes and diffusers do.

Next to a packed weight ``X.weight`` [n/2,1] are its scales and code, ``X.weight.absmax``,
``X.weight.quant_map``, ``X.weight.nested_absmax``, ``X.weight.nested_quant_map`` and
``X.weight.quant_state.bitsandbytes__nf4``. diffusers reads such files on GPUs only; this reads them
anywhere, and maps them instead of copying where the device is the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from regionroute.errors import UserError
from regionroute.files import read_json
from regionroute.models.quantize import nf4_modules

STATE = ".weight.quant_state.bitsandbytes__nf4"
CONFIG_KEY = "quantization_config"
NAME = "diffusion_pytorch_model"
# What diffusers' BitsAndBytesConfig writes for weights as `quantize_blocks` makes them.
NF4_CONFIG = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "load_in_8bit": False,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
    "bnb_4bit_quant_storage": "uint8",
}


def is_nf4(config: Mapping[str, Any]) -> bool:
    """Whether a network's ``config.json`` says that it is stored in nf4."""
    stored = config.get(CONFIG_KEY)
    return (
        isinstance(stored, dict)
        and stored.get("quant_method") == "bitsandbytes"
        and stored.get("bnb_4bit_quant_type") == "nf4"
    )


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the same network in full precision."""
    return {key: value for key, value in config.items() if key != CONFIG_KEY}


def load_packed(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A transformer with 4-bit layers, on the CPU.

    Args:
        kind: its class.
        folder: of its ``config.json`` and weights.
        dtype: of all weights that are not packed, and of the computation.

    Raises:
        UserError: bitsandbytes is not installed; weights are missing, unexpected or of other sizes.
    """
    with torch.device("meta"):
        model = kind.from_config(plain_config(read_json(folder / "config.json")))
    tensors = dict(_tensors(folder))
    packed = {key.removesuffix(STATE) for key in tensors if key.endswith(STATE)}
    if not packed:
        raise UserError(f"{folder}: its configuration says nf4, but no weight is stored so")
    wanted = model.state_dict()
    for name in sorted(packed):
        if f"{name}.weight" not in wanted:
            raise UserError(f"{folder}: {name} is stored, which this transformer does not have")
        _replace(model, name, _take(tensors, f"{name}.weight"), dtype)
    used = {f"{name}.weight" for name in packed}
    missing = sorted(wanted.keys() - used - tensors.keys())
    unexpected = sorted(tensors.keys() - (wanted.keys() - used))
    if missing or unexpected:
        what = f"lacks {missing[0]}" if missing else f"has {unexpected[0]}, which nothing uses"
        raise UserError(f"{folder}: the file {what}; copy it again")
    plain = {key: value.to(dtype) for key, value in tensors.items()}
    model.load_state_dict(plain, strict=False, assign=True)
    return model


def _replace(model: nn.Module, name: str, stored: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Puts a 4-bit layer in place of a plain one on the meta device."""
    modules = nf4_modules()
    plain = model.get_submodule(name)
    layer = modules.Linear4bit(
        plain.in_features, plain.out_features, bias=plain.bias is not None, compute_dtype=dtype,
        quant_type="nf4", device="meta",
    )  # fmt: skip
    layer.support_avx512bf16_for_cpu = False  # see quantize._nf4
    layer.weight = modules.Params4bit.from_prequantized(
        stored.pop("weight"), stored, requires_grad=False, device="cpu", module=layer
    )
    layer.weight.quant_state.dtype = dtype
    if tuple(layer.weight.quant_state.shape) != (plain.out_features, plain.in_features):
        raise UserError(f"{name}: the stored weight is of another size: this is another base")
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


def _take(tensors: dict[str, Tensor], weight: str) -> dict[str, Tensor]:
    """Removes a packed weight and what belongs to it; its keys as bitsandbytes reads them."""
    own = {"weight": tensors.pop(weight)}
    for key in [key for key in tensors if key.startswith(f"{weight}.")]:
        own[key.removeprefix(f"{weight}.")] = tensors.pop(key)
    return own


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a network's files, mapped and not read."""
    for file in sorted(folder.glob(f"{NAME}*.safetensors")):
        with safe_open(file, "pt") as opened:
            for key in opened.keys():  # noqa: SIM118 (not a dict)
                yield key, opened.get_tensor(key)
