"""Runs a training step without numbers and counts what it would hold and compute.

The step is the real one: the model, its experts, the recorder, the losses, gradient checkpointing
and the backward pass, on tensors that have a shape and a type but no contents (PyTorch's fake
tensors). Every operation tells the storages it makes, so the peak is that of the operations
themselves and not of a formula; what an allocator or a kernel needs besides is not in it.

Shape legend: B batch, C latent channels, h w latent rows and columns, T text tokens, D text width,
P pooled width, Ds style embedding.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from regionroute.adapters import (
    RouteContext,
    SimilarityRouter,
    adapter_parameters,
    inject,
    routed,
)
from regionroute.attention import AttentionPlan, AttentionRecorder, attend, attention_loss
from regionroute.diffusion.families import family_of_config
from regionroute.diffusion.flow import add_noise, predict_velocity, velocity_target
from regionroute.models.quantize import stored_bytes

if TYPE_CHECKING:
    from regionroute.config.run import RunConfig


@dataclass(frozen=True)
class StepShape:
    """Sizes of one backward pass.

    Attributes:
        batch: pairs, B.
        latent: C, h, w of both pictures.
        text: T and D of the prompt's states.
        pooled: P.
        experts: experts a layer.
        style_dim: Ds, None where names choose the experts.
    """

    batch: int
    latent: tuple[int, int, int]
    text: tuple[int, int]
    pooled: int
    experts: int
    style_dim: int | None = None

    @property
    def image_tokens(self) -> int:
        """Tokens of one picture; the model sees two."""
        return self.latent[1] // 2 * (self.latent[2] // 2)

    @property
    def tokens(self) -> int:
        """All tokens of a pair: text, noisy target, context."""
        return self.text[0] + 2 * self.image_tokens


@dataclass(frozen=True)
class Trace:
    """What one backward pass holds and computes.

    Attributes:
        frozen: values of the base.
        frozen_bytes: their memory, as ``base.quantize`` stores them.
        trainable: values of the adapters, in float32.
        kept: bytes that wait for the backward pass once the forward pass has ended.
        activations: bytes at the peak, over weights and gradients.
        flops: multiplications and additions of forward, recomputation and backward.
    """

    frozen: int
    frozen_bytes: int
    trainable: int
    kept: int
    activations: int
    flops: int


class MemoryCounter(TorchDispatchMode):
    """Follows the storages that operations make, and their matrix products.

    Attributes:
        now: bytes alive, of those made inside the mode or given to `add`.
        peak: the most that `now` has been.
        flops: so far, as `torch.utils.flop_counter` counts them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.flops = 0
        self._sizes: dict[int, int] = {}

    def add(self, tensor: Tensor) -> None:
        """Counts a tensor's storage until nobody holds it; once, however many tensors share it."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.now += self._sizes[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key).atexit = False

    def _drop(self, key: int) -> None:
        self.now -= self._sizes.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=out)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.add(tensor)
        return out


def trace_step(settings: dict[str, Any], config: RunConfig, shape: StepShape) -> Trace:
    """Forward and backward pass of a transformer of any size; takes seconds and no memory.

    The kernels are the processor's. Gradients are there from the beginning, as they are in every
    pass of an accumulated step but the first.

    Args:
        settings: the transformer's configuration, as in its ``config.json``.
        config: its base, experts, flow, supervision and train parts are read.
        shape: of the pass.

    Raises:
        UserError: targets or blocks that the transformer does not have.
    """
    dtype = getattr(torch, config.base.dtype)
    plan, route = _plan(shape), _route(shape)
    _try_kernels(dtype)
    with FakeTensorMode(allow_non_fake_inputs=True):
        transformer = _adapted(settings, config, shape, dtype)
        trained = adapter_parameters(transformer)
        with torch.no_grad():
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
        inputs = _inputs(shape, dtype)
        counter = MemoryCounter()
        for tensor in [*transformer.parameters(), *(p.grad for p in trained), *inputs]:
            if tensor is not None:
                counter.add(tensor)
        before = counter.now
        with counter, routed(transformer, route):
            supervised = config.supervision.focus > 0 or config.supervision.cover > 0
            loss = _supervised if supervised else _plain
            with loss(transformer, config, inputs, plan) as total:
                kept = counter.now - before
                total.backward()
        frozen = {n: p for n, p in transformer.named_parameters() if not p.requires_grad}
        stored = sum(stored_bytes(n, p, config.base.quantize) for n, p in frozen.items())
    return Trace(
        frozen=sum(p.numel() for p in frozen.values()),
        frozen_bytes=round(stored),
        trainable=sum(p.numel() for p in trained),
        kept=kept,
        activations=counter.peak - before,
        flops=counter.flops,
    )


@contextmanager
def without_numbers(dtype: torch.dtype) -> Iterator[MemoryCounter]:
    """Makes tensors without contents inside, floating ones of `dtype` unless they say otherwise."""
    counter = MemoryCounter()
    with FakeTensorMode(allow_non_fake_inputs=True), default_dtype(dtype), counter:
        yield counter


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """The type that new weights have inside."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _try_kernels(dtype: torch.dtype) -> None:
    """Lets `attend` check its kernel on numbers, which it does once; later there are none."""
    two = torch.ones(1, 1, 2, 8, dtype=dtype)
    attend(two, two, two, torch.zeros(1, 1, 1, dtype=torch.long))


def _adapted(
    settings: dict[str, Any], config: RunConfig, shape: StepShape, dtype: torch.dtype
) -> Any:
    with default_dtype(dtype), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # initialisation of weights that are not there
        transformer = family_of_config(settings).transformer.from_config(settings)
    experts = config.experts
    router = None
    if shape.style_dim is not None:
        width = shape.style_dim

        def router() -> SimilarityRouter:
            return _Gate(width, shape.experts, experts.top_k)

    inject(
        transformer, experts.targets, shape.experts, experts.rank, experts.alpha, experts.dropout,
        shared_rank=experts.shared_rank, router=router,
    )  # fmt: skip
    if config.train.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    return transformer.train()


class _Gate(SimilarityRouter):
    """A router that stays where it is: a weight without numbers cannot be moved in place."""

    def to(self, *args: Any, **kwargs: Any) -> _Gate:
        return self


def _plan(shape: StepShape) -> AttentionPlan:
    """One object a picture and two tokens a phrase; the sizes hardly depend on either."""
    _, height, width = shape.latent
    return AttentionPlan(
        token_index=torch.tensor([0, min(1, shape.text[0] - 1)]).expand(shape.batch, 1, 2),
        masks=torch.ones(shape.batch, 1, height // 2, width // 2),
        valid=torch.ones(shape.batch, 1, dtype=torch.bool),
        text_len=shape.text[0],
        image_len=shape.image_tokens,
    )


def _route(shape: StepShape) -> RouteContext:
    """A batch in which the styles differ, which takes more than one of a single style."""
    if shape.style_dim is None:
        return RouteContext(torch.arange(shape.batch) % shape.experts)
    generator = torch.Generator().manual_seed(0)
    return RouteContext(style_emb=torch.randn(shape.batch, shape.style_dim, generator=generator))


def _inputs(shape: StepShape, dtype: torch.dtype) -> list[Tensor]:
    """Target, context and noise [B,C,h,w], noise level [B], text [B,T,D] and pooled [B,P]."""
    pictures = [torch.empty(shape.batch, *shape.latent) for _ in range(3)]
    text = torch.empty(shape.batch, *shape.text, dtype=dtype)
    return [*pictures, torch.empty(shape.batch), text, torch.empty(shape.batch, shape.pooled)]


@contextmanager
def _plain(
    transformer: nn.Module, config: RunConfig, inputs: list[Tensor], plan: AttentionPlan
) -> Iterator[Tensor]:
    yield _flow(transformer, config, inputs).mean()


@contextmanager
def _supervised(
    transformer: nn.Module, config: RunConfig, inputs: list[Tensor], plan: AttentionPlan
) -> Iterator[Tensor]:
    """As the training step: the backward pass belongs inside the recording."""
    wanted = config.supervision
    recorder = AttentionRecorder(wanted.layers, wanted.queries, wanted.norm)
    with recorder.recording(transformer, plan):
        flow = _flow(transformer, config, inputs)
        losses = attention_loss(recorder.maps(), plan, wanted)
        total = flow + wanted.focus * losses["focus"] + wanted.cover * losses["cover"]
        yield total.mean()


def _flow(transformer: Any, config: RunConfig, inputs: list[Tensor]) -> Tensor:
    """Mean squared error of the velocity, [B]."""
    target, context, noise, sigma, text, pooled = inputs
    velocity = predict_velocity(
        transformer, add_noise(target, noise, sigma), context, text, pooled, sigma,
        config.flow.guidance,
    )  # fmt: skip
    return (velocity.float() - velocity_target(target, noise)).square().mean((1, 2, 3))
