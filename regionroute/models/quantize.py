"""A frozen base in 4 or 8 bits, and which precision is used where.

- ``base.dtype`` is what the base computes in: its weights, the activations and the text states are
  of that type. float16 edits; training in it overflows and is refused.
- Experts, routers, their gradients and the optimizer's state are float32 and are exported so; a
  layer casts its experts to the activations in its forward pass.
- Latents, noise, noise levels, attention maps and losses are float32; the call of the transformer
  casts what it is fed, and position ids are never rounded.
- ``base.quantize`` stores the linear layers of the transformer's blocks, which are nearly all of
  its weights, in fewer bits, and computes in ``base.dtype``. All else stays in ``base.dtype``.
  Experts of a quantised base fit the plain one and the other way round.

nf4 is bitsandbytes' (QLoRA, arXiv:2305.14314), about 4.1 bits a weight; its backward pass keeps
the packed weights alone. fp8 is torchao's weight-only float8, 8 bits and a scale a row; there the
backward pass keeps each layer's weights in ``base.dtype``, which gradient checkpointing bounds to
those of one block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regionroute.config.choices import Quantize
from regionroute.errors import UserError

BLOCKS = "transformer_blocks."  # part of the names of all that is stored in fewer bits
# With a scale for 64 weights that is itself kept in 8 bits; a scale for each row is little.
BYTES: dict[Quantize, float] = {"nf4": (4 + 8 / 64 + 32 / (64 * 256)) / 8, "fp8": 1.0}


def quantize_blocks(
    transformer: nn.Module, kind: Quantize, device: str | torch.device = "cpu"
) -> None:
    """Stores the linear layers of a transformer's blocks in fewer bits, in place.

    Layer by layer, so that a GPU never holds the plain weights; the rest of the transformer stays
    where it is.

    Args:
        transformer: plain and frozen.
        kind: see the module's docstring.
        device: where the quantised layers go; they are quantised there.

    Raises:
        UserError: the package it needs is not installed, or does not run here.
    """
    convert = {"nf4": _nf4, "fp8": _fp8}[kind]
    for name, layer in list(transformer.named_modules()):
        if type(layer) is nn.Linear and BLOCKS in name:
            parent, _, child = name.rpartition(".")
            setattr(transformer.get_submodule(parent), child, convert(layer, device))


def stored_bytes(name: str, weight: Tensor, kind: Quantize | None) -> float:
    """Memory of a plain weight once it is stored so; temporary plain weights are not counted.

    Args:
        name: in the transformer.
        weight: as it is before.
        kind: None leaves it.
    """
    if kind is None or BLOCKS not in name or weight.ndim != 2:
        return weight.numel() * weight.element_size()
    return weight.numel() * BYTES[kind]


def check_quantize(kind: Quantize) -> None:
    """Refuses a kind whose package is missing, before a large base is read.

    Raises:
        UserError: see `quantize_blocks`.
    """
    nf4_modules() if kind == "nf4" else _torchao()


def nf4_modules() -> Any:
    """Import the modules of bitsandbytes.

    Raises:
        UserError: it is not installed.
    """
    try:
        from bitsandbytes import nn as modules
    except ImportError as error:
        raise _missing("nf4", "bitsandbytes") from error
    return modules


def nf4_code() -> Tensor:
    """The 16 values of nf4, in [-1,1]."""
    from bitsandbytes.functional import get_4bit_type

    code: Tensor = get_4bit_type("nf4", device="cpu")
    return code


def nf4_bytes(count: int) -> int:
    """Bytes of so many values in nf4, scales included and codes not."""
    return round(count * BYTES["nf4"])


def nf4_state(absmax: Tensor, shape: torch.Size, dtype: torch.dtype) -> dict[str, Tensor]:
    """What is stored next to a packed weight, by the keys of bitsandbytes.

    Args:
        absmax: the largest absolute value of every 64 weights, float32.
        shape: of the weight.
        dtype: that it is unpacked to.
    """
    from bitsandbytes.functional import QuantState, quantize_blockwise

    offset = absmax.mean()
    small, nested = quantize_blockwise(absmax - offset, blocksize=256)
    state = QuantState(
        absmax=small, shape=shape, dtype=dtype, blocksize=64, code=nf4_code(), quant_type="nf4",
        offset=offset, state2=nested,
    )  # fmt: skip
    stored: dict[str, Tensor] = state.as_dict(packed=True)
    return stored


def _nf4(layer: nn.Linear, device: str | torch.device) -> nn.Module:
    modules = nf4_modules()
    small: Any = modules.Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=layer.weight.dtype,
        quant_type="nf4",
        device="meta",
    )
    # Quantised as it goes to the device.
    small.weight = modules.Params4bit(
        layer.weight.data, requires_grad=False, quant_type="nf4", module=small
    )
    small.bias = layer.bias
    # On some processors it would repack the weights, rounded, in evaluation mode.
    small.support_avx512bf16_for_cpu = False
    result: nn.Module = small.to(device).train(layer.training)
    return result


def _fp8(layer: nn.Linear, device: str | torch.device) -> nn.Module:
    quantize_, config = _torchao()
    layer = layer.to(device)
    quantize_(nn.Sequential(layer), config())
    # A buffer moves as any other and stays out of checkpoints; a parameter of this kind DeepSpeed
    # can neither move, send nor load.
    weight = layer.weight.detach()
    del layer.weight
    layer.register_buffer("weight", weight, persistent=False)
    return layer.requires_grad_(False)


def _torchao() -> tuple[Any, Any]:
    try:
        from torchao.quantization import Float8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise _missing("fp8", "torchao") from error
    return quantize_, Float8WeightOnlyConfig


def _missing(kind: str, package: str) -> UserError:
    return UserError(
        f"base.quantize={kind} needs {package}: pip install 'regionroute[{kind}]', or leave "
        "base.quantize null"
    )
