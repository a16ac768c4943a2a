"""Which kernel computes attention with its log-sum-exp."""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from regionroute.attention.kernels import KERNELS, fused_attention
from regionroute.config.choices import BACKENDS, Backend
from regionroute.errors import UserError

# Tried in this order by "auto", as PyTorch's own attention does. "dense" takes any input.
_PREFERRED = ("cpu", "flash", "efficient", "dense")

_log = logging.getLogger(__name__)


def choose_backend(backend: Backend, query: Tensor, value: Tensor, mask: Tensor | None) -> str:
    """The backend that runs: the named one, or for "auto" the first that can, logged once.

    Args:
        backend: one of `BACKENDS`.
        query: [B,H,N,D].
        value: [B,H,N,D].
        mask: of the attention, or None.

    Raises:
        UserError: the named one cannot run here; the message says why.
        ValueError: there is no such backend.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "auto":
        chosen = next(name for name in _PREFERRED if not refusal_of(name, query, value, mask))
        if not torch.compiler.is_compiling():
            _say_once(chosen, query.device.type, query.dtype, query.shape[-1])
        return chosen
    if refusal := refusal_of(backend, query, value, mask):
        raise UserError(f'attention backend "{backend}" cannot run here: {refusal}')
    return backend


def refusal_of(name: str, query: Tensor, value: Tensor, mask: Tensor | None) -> str | None:
    """Why a backend cannot take these tensors, None if it can.

    Args:
        name: one of `BACKENDS`, "auto" aside.
        query: [B,H,N,D].
        value: [B,H,N,D].
        mask: of the attention, or None.
    """
    if name == "dense":
        return None
    if name == "flex":
        return _flex_refusal(query)
    refusal = KERNELS[name].refusal(query, value, mask)
    if refusal is None and not torch.compiler.is_compiling():
        refusal = _verify(name, query.device, query.dtype)
    return refusal


@cache
def _say_once(chosen: str, device: str, dtype: torch.dtype, width: int) -> None:
    _log.info("attention columns by the %s kernel (%s, %s, heads %d wide)",
              chosen, device, str(dtype).removeprefix("torch."), width)  # fmt: skip


@cache
@torch.inference_mode(False)  # the caller may be in it, as ComfyUI is
def _verify(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a kernel's backward pass is wrong, found on a small example.

    A kernel library that recomputes the output in its backward pass (some builds of xformers do)
    would silently lose the gradient of the log-sum-exp.
    """
    generator = torch.Generator().manual_seed(0)
    tensors = torch.randn(3, 1, 2, 24, 32, generator=generator).to(device, dtype)
    weights = torch.randn(1, 2, 24, generator=generator).to(device)

    def gradient(run: Callable[..., tuple[Tensor, Tensor]], *rest: Any) -> Tensor:
        # Hooks of our own: those of a checkpointed block would count these tensors among the
        # block's and miss them in the recomputation.
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)
        with torch.enable_grad(), hooks:
            query, key, value = tensors.detach().requires_grad_().unbind()
            out, lse = run(query, key, value, *rest)
            (grad,) = torch.autograd.grad(out.float().sum() + (lse * weights).sum(), query)
        return grad.float()

    def plain(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        logits = query.float() @ key.float().mT
        return logits.softmax(-1).to(value.dtype) @ value, logits.logsumexp(-1)

    with torch.autocast(device_type=device.type, enabled=False):
        wanted = gradient(plain)
        error = (gradient(fused_attention, None, 1.0, name) - wanted).norm() / wanted.norm()
    if error.item() < 0.05:
        return None
    return f"its backward pass loses the gradient of the log-sum-exp (error {error.item():.0%})"


def _flex_refusal(query: Tensor) -> str | None:
    if query.device.type == "cuda":
        return None
    where = {"cpu": "the CPU"}.get(query.device.type, query.device.type)
    return f"FlexAttention does not return the log-sum-exp on {where}"


def flex_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, _: str
) -> tuple[Tensor, Tensor]:
    """As `fused_attention`, by a compiled FlexAttention, whose backward knows the log-sum-exp."""
    from torch.nn.attention.flex_attention import AuxRequest

    modify = None
    if mask is not None:
        full = mask.expand(*query.shape[:3], key.shape[2])

        def modify(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            if full.dtype == torch.bool:
                return torch.where(full[b, h, i, j], score, -torch.inf)
            return score + full[b, h, i, j]

    out, aux = _compiled_flex()(
        query, key, value, score_mod=modify, scale=scale, return_aux=AuxRequest(lse=True)
    )
    return out, aux.lse


@cache
def _compiled_flex() -> Callable[..., Any]:
    from torch.nn.attention import flex_attention

    return torch.compile(flex_attention.flex_attention)
