"""Runs a training step on fake tensors and counts what it would hold and compute.

The step is the real one, `train.step.training_step`: model, experts, recorder, all losses, gradient
checkpointing and the backward pass. The library may not import `train`, so the caller passes the
step in; `train.planned.planned_step` is made for it.

Shape legend: B batch, C latent channels, h w latent rows and columns, T text tokens, D text width,
P pooled width, Ds style embedding.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from regionroute.adapters import RouteContext, SimilarityRouter, adapter_parameters, inject
from regionroute.attention import AttentionPlan, attend
from regionroute.diffusion.families import family_of_config
from regionroute.models.perceptual import empty_features
from regionroute.models.quantize import stored_bytes
from regionroute.planning.counter import MemoryCounter, default_dtype, fake_tensors

if TYPE_CHECKING:
    from regionroute.config.run import RunConfig
    from regionroute.diffusion.family import Autoencoder


@dataclass(frozen=True)
class StepShape:
    """Sizes of one backward pass.

    Attributes:
        batch: pairs, B.
        latent: C, h, w of target and context.
        text: T and D of the prompt's states.
        pooled: P.
        experts: experts per layer.
        style_dim: Ds, None where the style's name selects the expert.
    """

    batch: int
    latent: tuple[int, int, int]
    text: tuple[int, int]
    pooled: int
    experts: int
    style_dim: int | None = None

    @property
    def image_tokens(self) -> int:
        """Tokens of one image; the model sees two."""
        return self.latent[1] // 2 * (self.latent[2] // 2)

    @property
    def tokens(self) -> int:
        """All tokens of a pair: text, noisy target, context."""
        return self.text[0] + 2 * self.image_tokens


@dataclass(frozen=True, eq=False)
class StepInputs:
    """What one training step reads; the fields are those of `train.step.Batch`.

    Attributes:
        target: latents of the styled image, [B,C,h,w].
        context: latents of the source image, [B,C,h,w].
        noise: [B,C,h,w].
        sigma: noise level, [B].
        prompt_embeds: text states, [B,T,D].
        pooled: pooled text state, [B,P].
        inside: soft union of the object masks, [B,1,h,w].
        plan: style tokens and object masks.
        route: which experts each sample uses, made from real values.
    """

    target: Tensor
    context: Tensor
    noise: Tensor
    sigma: Tensor
    prompt_embeds: Tensor
    pooled: Tensor
    inside: Tensor
    plan: AttentionPlan
    route: RouteContext

    def tensors(self) -> list[Tensor]:
        """The fields that are tensors."""
        values = (getattr(self, field.name) for field in fields(self))
        return [value for value in values if isinstance(value, Tensor)]


@dataclass(frozen=True)
class LossNetworks:
    """What the perceptual loss runs besides the transformer.

    Attributes:
        decode: latents [B,C,h,w] to images [B,3,H,W] in [0,1], differentiable.
        features: the network whose features are compared.
    """

    decode: Callable[[Tensor], Tensor]
    features: nn.Module


# (transformer, inputs, config, networks of the perceptual loss) -> the mean total loss. The
# backward pass belongs inside the ``with`` block.
Step: TypeAlias = Callable[
    [Any, StepInputs, "RunConfig", LossNetworks | None], AbstractContextManager[Tensor]
]


@dataclass(frozen=True)
class Trace:
    """What one backward pass holds and computes.

    Attributes:
        frozen: values of the base.
        frozen_bytes: their memory, as ``base.quantize`` stores them.
        trainable: values of the adapters, in float32.
        loss_bytes: memory of the decoder and the network of the perceptual loss, 0 without it.
        kept: bytes that wait for the backward pass once the forward pass has ended.
        activations: bytes at the peak, over weights and gradients.
        flops: multiplications and additions of forward, recomputation and backward.
        operations: how many tensor operations that took.
    """

    frozen: int
    frozen_bytes: int
    trainable: int
    loss_bytes: int
    kept: int
    activations: int
    flops: int
    operations: int


def trace_step(
    settings: dict[str, Any],
    config: RunConfig,
    shape: StepShape,
    step: Step,
    autoencoder: Callable[[], nn.Module] | None = None,
) -> Trace:
    """Forward and backward pass of a transformer of any size; takes seconds and no memory.

    The kernels are the processor's. Gradients exist from the beginning, as they do in every pass of
    an accumulated step but the first.

    Args:
        settings: the transformer's configuration, as in its ``config.json``.
        config: its base, experts, flow, supervision and train parts are read.
        shape: of the pass.
        step: the training step, `train.planned.planned_step`.
        autoencoder: makes the base's; needed for ``flow.perceptual.network``, whose loss decodes.

    Raises:
        UserError: targets or blocks that the transformer does not have.
        ValueError: a perceptual loss without `autoencoder`.
    """
    dtype = getattr(torch, config.base.dtype)
    plan, route = _plan(shape), _route(shape)
    _try_kernels(dtype)
    with fake_tensors():
        transformer = _adapted(settings, config, shape, dtype)
        networks, loss_weights = _loss_networks(settings, config, dtype, autoencoder)
        trained = adapter_parameters(transformer)
        with torch.no_grad():
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
        inputs = _inputs(shape, dtype, plan, route)
        counter = MemoryCounter()
        gradients = [parameter.grad for parameter in trained]
        for tensor in [*transformer.parameters(), *gradients, *loss_weights, *inputs.tensors()]:
            if tensor is not None:
                counter.add(tensor)
        before = counter.now
        with counter, step(transformer, inputs, config, networks) as total:
            kept = counter.now - before
            total.backward()
        frozen = {n: p for n, p in transformer.named_parameters() if not p.requires_grad}
        stored = sum(stored_bytes(n, p, config.base.quantize) for n, p in frozen.items())
    return Trace(
        frozen=sum(p.numel() for p in frozen.values()),
        frozen_bytes=round(stored),
        trainable=sum(p.numel() for p in trained),
        loss_bytes=sum(weight.numel() * weight.element_size() for weight in loss_weights),
        kept=kept,
        activations=counter.peak - before,
        flops=counter.flops,
        operations=counter.operations,
    )


def _loss_networks(
    settings: dict[str, Any],
    config: RunConfig,
    dtype: torch.dtype,
    autoencoder: Callable[[], nn.Module] | None,
) -> tuple[LossNetworks | None, list[Tensor]]:
    """Decoder and network of the perceptual loss, and their weights; nothing where it is off."""
    if config.flow.perceptual.network is None:
        return None, []
    if autoencoder is None:
        raise ValueError("flow.perceptual.network: give the autoencoder, its loss decodes")
    with default_dtype(dtype):
        vae = autoencoder().requires_grad_(False).eval()
    features = empty_features(config.flow.perceptual.network)
    decode = partial(family_of_config(settings).decode_latents, cast("Autoencoder", vae))
    return LossNetworks(decode, features), [*vae.parameters(), *features.parameters()]


def _try_kernels(dtype: torch.dtype) -> None:
    """Lets `attend` check its kernel on real data, which it does once; fake tensors have none."""
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
    """A router that stays on its device: a fake weight cannot be moved in place."""

    def to(self, *args: Any, **kwargs: Any) -> _Gate:
        return self


def _plan(shape: StepShape) -> AttentionPlan:
    """One object per image and two tokens per phrase; sizes hardly depend on either."""
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
    expert_ids = torch.arange(shape.batch) % shape.experts
    if shape.style_dim is None:
        return RouteContext(expert_ids)
    generator = torch.Generator().manual_seed(0)
    return RouteContext(expert_ids, torch.randn(shape.batch, shape.style_dim, generator=generator))


def _inputs(
    shape: StepShape,
    dtype: torch.dtype,
    plan: AttentionPlan,
    route: RouteContext,
) -> StepInputs:
    """The inputs of a step: fake, but for those that select tokens and experts."""
    target, context, noise = (torch.empty(shape.batch, *shape.latent) for _ in range(3))
    return StepInputs(
        target=target,
        context=context,
        noise=noise,
        sigma=torch.empty(shape.batch),
        prompt_embeds=torch.empty(shape.batch, *shape.text, dtype=dtype),
        pooled=torch.empty(shape.batch, shape.pooled),
        inside=torch.empty(shape.batch, 1, *shape.latent[1:]),
        plan=plan,
        route=route,
    )
