"""The selective scan of Mamba: h_l = exp(Δ_l A) h_{l-1} + Δ_l B_l x_l, y_l = C_l·h_l + D x_l.

After Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" (2023), in
three implementations of one function, `selective_scan`: a loop over the tokens (the reference), a
scan of logarithmic depth in pure torch, and the fused kernel of the package `mamba-ssm` if it is
installed and the tensors are on a GPU.

Shapes: B batch, L tokens, E channels, N states per channel.
"""

import functools
import importlib
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pseudo_labels.stylemamba.modules.scan import scan_in_place
from regionroute.errors import UserError

Method = Literal["auto", "loop", "associative", "fused"]
METHODS: tuple[Method, ...] = ("auto", "loop", "associative", "fused")

# States [L, B, channels, N] processed at once. On a CPU as many as fit in its cache, which is two
# to three times faster than all at once; GPUs are faster with large kernels.
_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}
_SPAN = (
    512  # tokens processed at once, so that the number of channels does not depend on the length
)
_LOG2_E = math.log2(math.e)  # on CPUs torch computes exp2 several times faster than exp


def selective_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    *,
    method: Method = "auto",
    elements: int | None = None,
) -> Tensor:
    """Run the recurrence over all tokens, from a zero state.

    The state is kept in fp32 (fp64 for fp64 inputs), also under autocast.

    Args:
        x: input [B, L, E].
        delta: step sizes > 0, [B, L, E].
        A: rates < 0, [E, N].
        B: input weights [B, L, N].
        C: output weights [B, L, N].
        D: weight of the direct path [E].
        method: "loop", "associative" or "fused"; "auto" uses the fused kernel if it can run,
            otherwise the associative scan.
        elements: states that the associative scan processes at once (memory is a few times 4 bytes
            each, at least B·L·N for one channel); None chooses by device.

    Returns:
        [B, L, E] in x's type; differentiable once in every tensor.

    Raises:
        UserError: "fused" is requested and cannot run here.
        ValueError: shapes do not match, or the method is unknown.
    """
    _check(x, delta, A, B, C, D, method)
    if method == "auto":
        method = "fused" if x.is_cuda and fused_kernel() else "associative"
    working = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        tensors = [tensor.to(working) for tensor in (x, delta, A, B, C)]
        if method == "fused":
            y = _fused(*tensors)
        elif method == "loop":
            y = _loop(*tensors)
        else:
            limit = elements or _ELEMENTS.get(x.device.type, _ELEMENTS["cuda"])
            y = _Associative.apply(*tensors, limit)
        return (y + D.to(working) * tensors[0]).to(x.dtype)


def fused_kernel() -> Callable[..., Tensor] | None:
    """`selective_scan_fn` of the package mamba-ssm, None if it is not installed or broken."""
    return _import_kernel()


@functools.cache
def _import_kernel() -> Callable[..., Tensor] | None:
    try:
        module = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    # A build for another torch or CUDA raises ImportError or OSError.
    except (ImportError, OSError):
        return None
    kernel: Callable[..., Tensor] = module.selective_scan_fn
    return kernel


def _check(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, method: str
) -> None:
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}, known are {', '.join(METHODS)}")
    batch, length, channels = x.shape
    states = A.shape[-1]
    wanted = {
        "delta": (delta, (batch, length, channels)),
        "A": (A, (channels, states)),
        "B": (B, (batch, length, states)),
        "C": (C, (batch, length, states)),
        "D": (D, (channels,)),
    }
    for name, (tensor, shape) in wanted.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} is {list(tensor.shape)}, expected {list(shape)} for this x")


def _fused(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    if fused_kernel() is None:
        raise UserError(
            "the scan method 'fused' needs the package mamba-ssm: install it for your CUDA with "
            "`pip install mamba-ssm`, or use 'auto'"
        )
    if not x.is_cuda:
        raise UserError("the scan method 'fused' runs on a GPU only: use 'auto' on the CPU")
    return _run_kernel(x, delta, A, B, C)


def _run_kernel(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Call the kernel, which has tokens in the last dimension."""
    kernel = fused_kernel()
    assert kernel is not None
    return kernel(
        *(t.mT.contiguous() for t in (x, delta)), A, *(t.mT.contiguous() for t in (B, C))
    ).mT


def _loop(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Token by token; everything that does not depend on the state is computed for all at once."""
    decay = torch.exp(delta[..., None] * A)
    drive = (delta * x)[..., None] * B[:, :, None]
    state = torch.zeros_like(drive[:, 0])
    states = []
    for a, b in zip(decay.unbind(1), drive.unbind(1), strict=True):
        state = torch.addcmul(b, a, state)
        states.append(state)
    return (torch.stack(states, 1) @ C[..., None])[..., 0]


class _Chunks:
    """Groups of channels, spans of tokens, and the buffers that they share.

    New buffers for every chunk would cost more than the arithmetic, because of page faults.
    """

    def __init__(self, x: Tensor, states: int, elements: int, buffers: int) -> None:
        batch, length, channels = x.shape
        tokens = min(length, _SPAN)
        size = max(1, min(channels, elements // max(1, batch * tokens * states)))
        self.parts = [slice(start, start + size) for start in range(0, channels, size)]
        self.spans = [slice(start, start + tokens) for start in range(0, length, tokens)]
        self._batch, self._states = batch, states
        whole = (tokens + 1) * batch * size * states
        self._buffers = [x.new_empty(whole) for _ in range(buffers)]

    def views(self, x: Tensor) -> list[Tensor]:
        """The buffers as [l + 1, B, e, N] for x [l, B, e]; the backward pass shifts by a token."""
        shape = (len(x) + 1, self._batch, x.shape[-1], self._states)
        return [buffer[: math.prod(shape)].view(shape) for buffer in self._buffers]


def _states(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, start: Tensor, buffers: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Decays and states [l, B, e, N] in two buffers.

    From x, delta [l, B, e], A [e, N], B [l, B, N] and the state before them, start [B, e, N].
    """
    decay, drive = (buffer[:-1] for buffer in buffers)
    torch.mul(delta[..., None], A * _LOG2_E, out=decay).exp2_()
    torch.mul((delta * x)[..., None], B[:, :, None], out=drive)
    drive[0].addcmul_(decay[0], start)
    return decay, scan_in_place(decay, drive)


def _over_states(h: Tensor, weights: Tensor) -> Tensor:
    """Sum of h [l, B, e, N] times [l, B, N] over the states: [l, B, e].

    The weights are a row on the left: with a column on the right torch takes four times as long on
    a CPU, longer than for the whole scan.
    """
    return (weights[:, :, None] @ h.mT)[:, :, 0]


def _over_channels(h: Tensor, weights: Tensor) -> Tensor:
    """Sum of h [l, B, e, N] times [l, B, e] over the channels: [l, B, N]."""
    return (weights[:, :, None] @ h)[:, :, 0]


class _Associative(torch.autograd.Function):
    """The scan by chunks of channels and tokens; states are recomputed in the backward pass.

    Memory: the inputs, one chunk, and the states before each span of tokens.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, elements: int
    ) -> Tensor:
        ctx.save_for_backward(x, delta, A, B, C)
        ctx.elements = elements
        x_, delta_, B_, C_ = (t.transpose(0, 1) for t in (x, delta, B, C))  # tokens first
        y = torch.empty_like(x_)
        chunks = _Chunks(x, A.shape[1], elements, buffers=2)
        ctx.starts = x.new_zeros(len(chunks.spans) + 1, len(x), *A.shape)
        for part in chunks.parts:
            for number, span in enumerate(chunks.spans):
                here, start = (span, slice(None), part), ctx.starts[number, :, part]
                views = chunks.views(x_[here])
                _, h = _states(x_[here], delta_[here], A[part], B_[span], start, views)
                y[here] = _over_states(h, C_[span])
                ctx.starts[number + 1, :, part] = h[-1]
        return y.transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, delta, A, B, C = ctx.saved_tensors
        x_, delta_, B_, C_ = (t.transpose(0, 1) for t in (x, delta, B, C))
        grad_y = grad_y.to(x.dtype).transpose(0, 1)
        grad_x, grad_delta = torch.empty_like(x_), torch.empty_like(x_)
        grad_A, grad_B, grad_C = (torch.zeros_like(tensor) for tensor in (A, B_, C_))
        chunks = _Chunks(x, A.shape[1], ctx.elements, buffers=3)
        with torch.autocast(x.device.type, enabled=False):
            for part in chunks.parts:
                later = torch.zeros_like(ctx.starts[0, :, part])
                for number, span in reversed(list(enumerate(chunks.spans))):
                    here = (span, slice(None), part)
                    *grads, later = _chunk_gradients(
                        *(x_[here], delta_[here], A[part], B_[span], C_[span], grad_y[here]),
                        *(ctx.starts[number, :, part], later, chunks.views(x_[here])),
                    )
                    grad_x[here], grad_delta[here] = grads[:2]
                    grad_A[part] += grads[2]
                    grad_B[span] += grads[3]
                    grad_C[span] += grads[4]
        grads_ = (grad_x.transpose(0, 1), grad_delta.transpose(0, 1), grad_A)
        return *grads_, grad_B.transpose(0, 1), grad_C.transpose(0, 1), None


def _chunk_gradients(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    grad_y: Tensor,
    start: Tensor,
    later: Tensor,
    buffers: list[Tensor],
) -> tuple[Tensor, ...]:
    """Gradients of x, delta, A, B, C and of the initial state; tokens first, see `_states`.

    The gradient of the state follows the same recurrence backwards:
    g_l = C_l ∂y_l + decay_{l+1} g_{l+1}. `later` [B, e, N] is the second term for the last token.
    """
    g = buffers[2][:-1]
    decay, h = _states(x, delta, A, B, start, buffers[:2])
    grad_C = _over_channels(h, grad_y)
    torch.mul(grad_y[..., None], C[:, :, None], out=g)
    g[-1] += later
    buffers[0][-1] = 0  # is read, although nothing follows the last token
    scan_in_place(buffers[0][1:], g, reverse=True)
    grad_drive = _over_states(g, B)  # of (delta x)
    exponent = decay.mul_(g)  # times the state before: the gradient of delta·A
    before = exponent[0].clone()
    exponent[1:].mul_(h[:-1])
    exponent[0].mul_(start)
    grad_B = _over_channels(g, delta * x)
    grad_A = torch.mul(exponent, delta[..., None], out=h).sum((0, 1))
    grad_delta = exponent.mul_(A).sum(-1) + grad_drive * x
    return grad_drive * delta, grad_delta, grad_A, grad_B, grad_C, before
