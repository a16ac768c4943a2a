"""One batch to its losses: flow matching, Focus and Cover, one value a sample.

Shape legend: B batch, C latent channels, h w latent rows and columns (tokens: h/2 x w/2), T text
tokens, D text width, P pooled width, S supervised (object, style) pairs of a sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regionroute.adapters import RouteContext, routed, routings
from regionroute.adapters.router_stats import load_balance
from regionroute.attention import (
    AttentionPlan,
    AttentionRecorder,
    attention_loss,
    map_scores,
    mean_map,
)
from regionroute.diffusion.flow import add_noise, predict_velocity, velocity_target

if TYPE_CHECKING:
    from regionroute.config.run import RunConfig
    from train.perceptual import PerceptualLoss


@dataclass(frozen=True, eq=False)
class Batch:
    """Everything one training step reads.

    Attributes:
        ids: sample ids, B of them.
        target: latents of the styled image, [B,C,h,w] fp32.
        context: latents of the source image, [B,C,h,w] fp32.
        noise: standard normal, [B,C,h,w] fp32.
        sigma: noise level in (0,1], [B] fp32.
        prompt_embeds: text states, [B,T,D] in the base's dtype.
        pooled: pooled text state, [B,P]; P is 0 where the base has none.
        expert_ids: long [B], the samples' styles.
        plan: style tokens [B,S,K] and soft object masks [B,S,h/2,w/2].
        inside: soft union of the object masks on the latent grid, [B,1,h,w] in [0,1].
        style_emb: embeddings of style images, [B,Ds] fp32; None where the style's name selects
            the expert.
        semantic_channels: the last ones of the C channels, which are not decoded to pixels.
        perceptual: samples that get the perceptual loss, bool [B]; None: all.
    """

    ids: tuple[str, ...]
    target: Tensor
    context: Tensor
    noise: Tensor
    sigma: Tensor
    prompt_embeds: Tensor
    pooled: Tensor
    expert_ids: Tensor
    plan: AttentionPlan
    inside: Tensor
    style_emb: Tensor | None = None
    semantic_channels: int = 0
    perceptual: Tensor | None = None

    @property
    def route(self) -> RouteContext:
        """Which experts each sample uses: by its style, or by its style image."""
        return RouteContext(self.expert_ids, self.style_emb)

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        moved: dict[str, Any] = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor | AttentionPlan)
        }
        return replace(self, **moved)


@dataclass(frozen=True, eq=False)
class StepLosses:
    """Losses and map scores of a batch, one value a sample.

    Attributes:
        flow: weighted mean squared error of the velocity, [B] fp32.
        focus: unweighted, [B] fp32; 0 when supervision is off.
        cover: unweighted, [B] fp32; 0 when supervision is off.
        total: flow + λ_f·focus + λ_c·cover + λ_b·balance + λ_p·perceptual, [B] fp32, with the
            graph; both of the supervision's weights under the cap where there is one.
        iou: of the region map at its boundary .5 with the mask, [B]; NaN when not measured.
        share: of the attention that lies inside the mask, [B]; NaN when not measured.
        balance: load-balance loss, the same for all samples, [B]; NaN when off.
        perceptual: distance of the decoded prediction, unweighted, [B]; NaN when off, and for
            samples without this loss.
    """

    flow: Tensor
    focus: Tensor
    cover: Tensor
    total: Tensor
    iou: Tensor
    share: Tensor
    balance: Tensor
    perceptual: Tensor

    NAMES = ("flow", "focus", "cover", "total", "iou", "share", "balance", "perceptual")

    def rows(self) -> Tensor:
        """[B,8] detached, columns in the order of `NAMES`."""
        return torch.stack([getattr(self, name).detach() for name in self.NAMES], dim=1)


@contextmanager
def training_step(
    transformer: Any,
    batch: Batch,
    config: RunConfig,
    *,
    measure: bool = False,
    supervision_scale: float = 1.0,
    perceptual: PerceptualLoss | None = None,
) -> Iterator[StepLosses]:
    """Runs the forward pass of a batch; the caller runs backward inside the ``with`` block.

    Gradient checkpointing runs the blocks again during backward, and needs the routing and the
    recording processors to be still in place::

        with training_step(model, batch, config) as losses:
            losses.total.mean().backward()

    Args:
        transformer: adapted, or the engine around it.
        batch: on the model's device.
        config: its flow, supervision and experts parts are read. Without supervision (both
            weights 0) nothing is recorded, unless `measure` asks for it.
        measure: also score the attention maps; changes no loss and no gradient.
        supervision_scale: factor on the weights of Focus and Cover, see
            `train.monitor.gradient_norms`.
        perceptual: loss on the images that the predictions decode to; None: off.

    Yields:
        Losses with their graph.
    """
    supervised = config.supervision.focus > 0 or config.supervision.cover > 0
    recorder = recorder_of(config) if supervised or measure else None
    with ExitStack() as contexts:
        contexts.enter_context(routed(transformer, batch.route))
        if recorder is not None:
            contexts.enter_context(recorder.recording(transformer, batch.plan))
        noisy, velocity = _predicted(transformer, batch, config)
        total = flow = _flow_loss(velocity, batch, config)
        focus = cover = torch.zeros_like(flow)
        iou = share = balance = distance = torch.full_like(flow, torch.nan)
        if perceptual is not None:
            distance = _perceptual(perceptual, noisy, velocity, batch)
            total = total + config.flow.perceptual.weight * distance.nan_to_num(0)
        if recorder is not None and supervised:
            losses = attention_loss(recorder.loss_maps(), batch.plan, config.supervision)
            focus, cover = losses["focus"], losses["cover"]
            focus_weight = supervision_scale * config.supervision.focus
            cover_weight = supervision_scale * config.supervision.cover
            total = total + focus_weight * focus + cover_weight * cover
        if config.experts.load_balance:
            balance = load_balance(routings(transformer)).expand_as(flow)
            total = total + config.experts.load_balance * balance
        if recorder is not None and measure:
            iou, share = measured(recorder.maps(), batch.plan)
        yield StepLosses(flow, focus, cover, total, iou, share, balance, distance)


def recorder_of(config: RunConfig) -> AttentionRecorder:
    """A recorder of the layers and queries that the run supervises."""
    wanted = config.supervision
    return AttentionRecorder(
        layers=wanted.layers, queries=wanted.queries, norm=wanted.norm, backend=wanted.backend
    )


def _predicted(transformer: Any, batch: Batch, config: RunConfig) -> tuple[Tensor, Tensor]:
    """Noisy latents and their predicted velocity, [B,C,h,w] fp32 each."""
    noisy = add_noise(batch.target, batch.noise, batch.sigma)
    velocity = predict_velocity(
        transformer,
        noisy,
        batch.context,
        batch.prompt_embeds,
        batch.pooled,
        batch.sigma,
        config.flow.guidance,
    )
    return noisy, velocity.float()


def _flow_loss(velocity: Tensor, batch: Batch, config: RunConfig) -> Tensor:
    """Mean squared error of the velocity of the channels that are decoded, [B] fp32."""
    drawn = velocity.shape[1] - batch.semantic_channels
    error = (velocity - velocity_target(batch.target, batch.noise))[:, :drawn].square()
    return (error * pixel_weights(batch.inside, config.flow.mask_weight)).mean((1, 2, 3))


def _perceptual(loss: PerceptualLoss, noisy: Tensor, velocity: Tensor, batch: Batch) -> Tensor:
    """The perceptual loss [B] of the samples that get it, NaN for the others."""
    clean = noisy - batch.sigma[:, None, None, None] * velocity
    chosen = batch.perceptual
    if chosen is None:
        return loss(clean, batch.target)
    distance = torch.full_like(batch.sigma, torch.nan)
    if not chosen.any():
        return distance
    return distance.masked_scatter(chosen, loss(clean[chosen], batch.target[chosen]))


def pixel_weights(inside: Tensor, mask_weight: float) -> Tensor:
    """Weights of the flow loss: `mask_weight` on the object, 1 elsewhere, mean 1 in each sample.

    Args:
        inside: [B,1,h,w] in [0,1].
        mask_weight: > 0; 1 gives the plain mean.

    Returns:
        [B,1,h,w].
    """
    weights = 1 + (mask_weight - 1) * inside
    return weights / weights.mean((1, 2, 3), keepdim=True)


@torch.no_grad()
def measured(maps: dict[str, Tensor], plan: AttentionPlan) -> tuple[Tensor, Tensor]:
    """How well the layers' mean map agrees with the masks.

    Args:
        maps: layer -> [B,S,h,w].
        plan: the masks and valid flags.

    Returns:
        IoU and share as `attention.map_scores` defines them, both [B]: the mean over a sample's
        valid objects, NaN if it has none.
    """
    iou, share = map_scores(mean_map(maps), plan.masks)
    hidden = ~plan.valid
    return (
        iou.masked_fill(hidden, torch.nan).nanmean(-1),
        share.masked_fill(hidden, torch.nan).nanmean(-1),
    )
