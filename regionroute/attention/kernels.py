"""Fused attention that also returns the log-sum-exp of every row, differentiable through both.

PyTorch's fused kernels compute the log-sum-exp but their backward takes no gradient for it, and
plain autograd through them silently drops that path (50 to 60 % of the gradient of an attention
probability). `fused_attention` restores it. The kernels' backward is

    dS = P * (dO V^T - delta),    delta = rowsum(dO * O),

and a gradient dLSE needs ``delta - dLSE`` in place of delta. Since `out` enters the backward only
through delta, there are two exact ways to get there; both are here because neither works in every
precision (`bench/attention.py` measures them):

- `_fold`: another `out` with the required row product. No extra width, 0 to 3 % of the time. It
  divides by the size of dO, for which float16 has too few exponents.
- `_pad`: eight more columns, dLSE in one column of dO against ones in V. Works in float16, costs
  the width (7 to 9 % of the time at 64 columns; a CUDA kernel for 128 columns becomes one for 192).

Shape legend: B batch, H heads, N tokens, D head width.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from regionroute.compat import attention_operators

aten = attention_operators()
_HALF = (torch.float16, torch.bfloat16)
_PAD = 8  # columns; CUDA kernels need a width that is a multiple of it
# The smallest dO that `_fold` divides by, next to dLSE and by itself.
_SMALL_RATIO, _SMALLEST = 2.0**-40, 1e-30


Saved: TypeAlias = tuple[Tensor | None, ...]
Forward: TypeAlias = tuple[Tensor, Tensor, Saved]
Grads: TypeAlias = tuple[Tensor, ...]


class Inputs(NamedTuple):
    """What a kernel reads: query, key and value [B,H,N,D], an additive bias [B,H,N,N] or None."""

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor | None
    scale: float


@dataclass(frozen=True)
class Kernel:
    """A fused attention kernel.

    Attributes:
        refusal: (query, value, mask) -> why it cannot take them, None if it can.
        forward: inputs -> output, log-sum-exp [B,H,N or more], other tensors the backward needs.
        backward: (inputs, dO, output, log-sum-exp, others) -> dQ, dK, dV. It must use the
            output and the log-sum-exp it is given instead of recomputing them.
    """

    refusal: Callable[[Tensor, Tensor, Tensor | None], str | None]
    forward: Callable[[Inputs], Forward]
    backward: Callable[[Inputs, Tensor, Tensor, Tensor, Saved], Grads]


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, backend: str
) -> tuple[Tensor, Tensor]:
    """Attention output [B,H,N,D] and log-sum-exp [B,H,N] in fp32 (fp64 for fp64 input).

    Args:
        query: [B,H,N,D], as key and value.
        key: [B,H,N,D].
        value: [B,H,N,D].
        mask: None, or bool (True: may attend) or additive, broadcastable to [B,H,N,N].
        scale: factor on the logits.
        backend: a key of `KERNELS`.
    """
    bias = None if mask is None else _additive(mask, query)
    out, lse = _FusedAttention.apply(query, key, value, bias, scale, backend)
    return out, lse


class _FusedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        scale: float,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        inputs = Inputs(query, key, value, bias, scale)
        out, lse, saved = KERNELS[backend].forward(inputs)
        ctx.save_for_backward(query, key, value, bias, out, lse, *saved)
        ctx.scale, ctx.backend = scale, backend
        ctx.set_materialize_grads(False)
        # A view, or a copy where the kernel pads rows to its block size.
        return out, lse[..., : query.shape[2]]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
        query, key, value, bias, out, lse, *saved = ctx.saved_tensors
        if grad_out is None:
            grad_out = torch.zeros_like(out)
        width = query.shape[-1]
        if grad_lse is not None and needs_padding(out.dtype):
            grad_out, query, key, value, out = _pad(grad_out, query, key, value, out, grad_lse)
        elif grad_lse is not None:
            grad_out, out = _fold(grad_out, out, grad_lse)
        inputs = Inputs(query, key, value, bias, ctx.scale)
        grads = KERNELS[ctx.backend].backward(inputs, grad_out, out, lse, tuple(saved))
        return *(grad[..., :width] for grad in grads), None, None, None


def needs_padding(dtype: torch.dtype) -> bool:
    """Whether `_pad` repairs the backward pass in this precision, and not `_fold`."""
    return dtype == torch.float16


def _fold(grad_out: Tensor, out: Tensor, grad_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Another dO and O, with rowsum(dO' * O') = rowsum(dO * O) - dLSE.

    dO stays, except in rows where it is negligible next to dLSE (the last block's unused rows,
    where it is zero): there its first entry becomes 2^-40 of dLSE, too little to change a gradient.
    """
    wide = torch.promote_types(out.dtype, torch.float32)
    wanted = grad_lse.to(wide)[..., None]
    size = grad_out.abs().amax(-1, keepdim=True).to(wide)
    floor = (wanted.abs() * _SMALL_RATIO).clamp(min=_SMALLEST)
    first = torch.arange(out.shape[-1], device=out.device) == 0
    grad_out = torch.where((size < floor) & (wanted != 0) & first, floor.to(out.dtype), grad_out)
    size = grad_out.abs().amax(-1, keepdim=True).to(wide).clamp(min=_SMALLEST)
    direction = grad_out.to(wide) / size  # within [-1,1], so that its square cannot vanish
    length = direction.square().sum(-1, keepdim=True).clamp(min=_SMALLEST)
    shift = wanted / size / length
    return grad_out, (out.to(wide) - direction * shift).to(out.dtype)


def _pad(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, grad_lse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """More columns for dO, Q, K, V and O: dO V^T gains dLSE, rowsum(dO * O) nothing."""
    width = out.shape[-1]
    grad_out, query, key, value, out = (
        F.pad(tensor, (0, _PAD)) for tensor in (grad_out, query, key, value, out)
    )
    grad_out[..., width] = grad_lse.to(out.dtype)
    # The rounding error of half precision, in a column of its own.
    grad_out[..., width + 1] = (grad_lse - grad_out[..., width]).to(out.dtype)
    value[..., width : width + 2] = 1
    return grad_out, query, key, value, out


def _additive(mask: Tensor, query: Tensor) -> Tensor:
    """The mask as a bias [B,H,N,N] in the query's dtype, a view where it can be one."""
    if mask.dtype == torch.bool:
        bias = torch.zeros(mask.shape, dtype=query.dtype, device=mask.device)
        mask = bias.masked_fill(~mask, -torch.inf)
    batch, heads, tokens, _ = query.shape
    mask = mask.to(query.dtype)
    if mask.device.type != "cpu" and tokens % 16:  # CUDA kernels load a bias in aligned pieces
        mask = F.pad(mask, (0, -tokens % 16))[..., :tokens]
    return mask.expand(batch, heads, tokens, tokens)


# --- what each kernel takes ---------------------------------------------------------------------


def _same_width(query: Tensor, value: Tensor) -> str | None:
    if query.shape[-1] != value.shape[-1]:
        return f"it needs values as wide as queries, not {value.shape[-1]} and {query.shape[-1]}"
    return None


def _width(query: Tensor) -> int:
    """Head width including what `_pad` adds."""
    return query.shape[-1] + (_PAD if needs_padding(query.dtype) else 0)


def _refuse_cpu(query: Tensor, value: Tensor, mask: Tensor | None) -> str | None:
    if query.device.type != "cpu":
        return f"it runs on the CPU, the tensors are on {query.device.type}"
    if not query.dtype.is_floating_point:
        return f"it takes floating-point numbers, not {query.dtype}"
    return _same_width(query, value)


def _refuse_cuda(query: Tensor, value: Tensor, dtypes: tuple[torch.dtype, ...]) -> str | None:
    if query.device.type != "cuda":
        return f"it needs a CUDA GPU, the tensors are on {query.device.type}"
    if query.dtype not in dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        return f"it takes {names}, not {str(query.dtype).removeprefix('torch.')}"
    if query.shape[-1] % 8:
        return f"it needs a head width that is a multiple of 8, not {query.shape[-1]}"
    return _same_width(query, value)


def _refuse_flash(query: Tensor, value: Tensor, mask: Tensor | None) -> str | None:
    if mask is not None:
        return "it takes no attention mask"
    if _width(query) > 256:
        return f"it takes heads up to 256 wide, not {_width(query)}"
    refusal = _refuse_cuda(query, value, _HALF)
    if refusal is None and torch.version.hip is None and _capability(query.device) < (8, 0):
        return "it needs a GPU of compute capability 8.0 or newer"
    return refusal


def _refuse_efficient(query: Tensor, value: Tensor, mask: Tensor | None) -> str | None:
    return _refuse_cuda(query, value, (*_HALF, torch.float32))


def _refuse_cudnn(query: Tensor, value: Tensor, mask: Tensor | None) -> str | None:
    if _width(query) > 128:
        return f"it takes heads up to 128 wide, not {_width(query)}"
    if query.device.type == "cuda" and not torch.backends.cudnn.is_available():
        return "this PyTorch is built without cuDNN"
    return _refuse_cuda(query, value, _HALF)


def _refuse_xformers(query: Tensor, value: Tensor, mask: Tensor | None) -> str | None:
    if importlib.util.find_spec("xformers") is None:
        return "the package xformers is not installed"
    return _refuse_cuda(query, value, (*_HALF, torch.float32))


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


# --- the kernels: their operators as PyTorch's own autograd calls them ---------------------------


def _cpu_forward(x: Inputs) -> Forward:
    out, lse = aten._scaled_dot_product_flash_attention_for_cpu(
        x.query, x.key, x.value, attn_mask=x.bias, scale=x.scale
    )
    return out, lse, ()


def _cpu_backward(x: Inputs, grad_out: Tensor, out: Tensor, lse: Tensor, saved: Saved) -> Grads:
    return aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad_out, x.query, x.key, x.value, out, lse, 0.0, False, attn_mask=x.bias, scale=x.scale
    )


def _flash_forward(x: Inputs) -> Forward:
    out, lse, *_, seed, offset, _ = aten._scaled_dot_product_flash_attention(
        x.query, x.key, x.value, scale=x.scale
    )
    return out, lse, (seed, offset)


def _flash_backward(x: Inputs, grad_out: Tensor, out: Tensor, lse: Tensor, saved: Saved) -> Grads:
    tokens = x.query.shape[2]
    return aten._scaled_dot_product_flash_attention_backward(
        grad_out, x.query, x.key, x.value, out, lse, None, None, tokens, tokens, 0.0, False,
        *saved, scale=x.scale,
    )  # fmt: skip


def _efficient_forward(x: Inputs) -> Forward:
    out, lse, *saved = aten._scaled_dot_product_efficient_attention(
        x.query, x.key, x.value, x.bias, True, scale=x.scale
    )
    return out, lse, tuple(saved)


def _efficient_backward(
    x: Inputs, grad_out: Tensor, out: Tensor, lse: Tensor, saved: Saved
) -> Grads:
    wanted = [True, True, True, False]
    return aten._scaled_dot_product_efficient_attention_backward(
        grad_out, x.query, x.key, x.value, x.bias, out, lse, *saved, 0.0, wanted, scale=x.scale
    )[:3]


def _cudnn_forward(x: Inputs) -> Forward:
    out, lse, *_, seed, offset, _ = aten._scaled_dot_product_cudnn_attention(
        x.query, x.key, x.value, x.bias, True, scale=x.scale
    )
    return out, lse.reshape(x.query.shape[:3]), (seed, offset)


def _cudnn_backward(x: Inputs, grad_out: Tensor, out: Tensor, lse: Tensor, saved: Saved) -> Grads:
    tokens = x.query.shape[2]
    return aten._scaled_dot_product_cudnn_attention_backward(
        grad_out, x.query, x.key, x.value, out, lse[..., None], *saved, x.bias, None, None,
        tokens, tokens, 0.0, False, scale=x.scale,
    )  # fmt: skip


def _xformers_forward(x: Inputs) -> Forward:
    from xformers.ops import fmha

    query, key, value = (tensor.transpose(1, 2) for tensor in (x.query, x.key, x.value))
    out, lse = fmha.memory_efficient_attention_forward_requires_grad(
        query, key, value, x.bias, scale=x.scale
    )
    return out.transpose(1, 2), lse, ()


def _xformers_backward(
    x: Inputs, grad_out: Tensor, out: Tensor, lse: Tensor, saved: Saved
) -> Grads:
    from xformers.ops import fmha

    grad_out, out, query, key, value = (
        tensor.transpose(1, 2) for tensor in (grad_out, out, x.query, x.key, x.value)
    )
    grads = fmha.memory_efficient_attention_backward(
        grad_out, out, lse, query, key, value, x.bias, scale=x.scale
    )
    return tuple(grad.transpose(1, 2) for grad in grads)


KERNELS: dict[str, Kernel] = {
    "cpu": Kernel(_refuse_cpu, _cpu_forward, _cpu_backward),
    "flash": Kernel(_refuse_flash, _flash_forward, _flash_backward),
    "efficient": Kernel(_refuse_efficient, _efficient_forward, _efficient_backward),
    "cudnn": Kernel(_refuse_cudnn, _cudnn_forward, _cudnn_backward),
    "xformers": Kernel(_refuse_xformers, _xformers_forward, _xformers_backward),
}
