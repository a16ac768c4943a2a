"""Flow-matching pre-training of nano's transformer and text encoders."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Generator, Tensor

from regionroute.attention import AttentionPlan, AttentionRecorder, attention_loss
from regionroute.config.losses import SupervisionConfig
from regionroute.diffusion.flow import (
    add_noise,
    draw_noise,
    draw_sigmas,
    predict_velocity,
    sample,
    velocity_target,
)
from regionroute.diffusion.latents import decode_latents, encode_images
from regionroute.models.codec import PatchCodec
from train.engine.loop import train_steps
from train.engine.single_process import resume
from train.perceptual import PerceptualLoss
from train.pretrain.config import BaseTrainingConfig, PretrainConfig
from train.pretrain.model import NanoModel


@dataclass(frozen=True)
class LatentPairs:
    """One batch of pre-training.

    Attributes:
        pictures: the context, [B,3,H,W] in [0,1].
        context, target: latents [B,C,h,w] float32.
        clip_ids, t5_ids: tokens of the prompts, [B,T] each.
        semantic_channels: how many of the C, the last ones, no image is decoded from.
        painted: bool [B], which get the perceptual loss; None: all.
        plan: tokens and masks of the named objects, for `WordSupervisionConfig`; None: none.
        generator: draws what else the step needs.
    """

    pictures: Tensor
    context: Tensor
    target: Tensor
    clip_ids: Tensor
    t5_ids: Tensor
    generator: Generator
    semantic_channels: int = 0
    painted: Tensor | None = None
    plan: AttentionPlan | None = None


@dataclass(frozen=True)
class HeldOut:
    """Pairs kept for validation: images [N,3,S,S] in [0,1] and prompts."""

    context: Tensor
    target: Tensor
    prompts: list[str]


class PairSource(Protocol):
    """Where pairs come from."""

    def batches(self, start: int) -> Iterator[LatentPairs]:
        """The batches of the steps from `start` on, each a function of (seed, step) alone."""
        ...

    def held_out(self, step: int) -> dict[str, HeldOut]:
        """Task -> validation pairs, at the size that this step's images have."""
        ...


def learning_rate(step: int, cfg: BaseTrainingConfig) -> float:
    """Linear warm-up, constant, then a linear fall to 1 % over the last `decay` of the steps."""
    warm = min(1.0, (step + 1) / max(1, cfg.warmup))
    left = (cfg.steps - step) / (cfg.steps * cfg.decay)
    return cfg.lr * warm * min(1.0, max(0.01, left))


def _optimizer(cfg: BaseTrainingConfig, model: NanoModel) -> torch.optim.Optimizer:
    """AdamW over the parameters that are trained."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(parameters, lr=cfg.lr, betas=cfg.betas, weight_decay=cfg.weight_decay)


def train_base(
    cfg: PretrainConfig, model: NanoModel, codec: PatchCodec, source: PairSource, output: Path
) -> None:
    """Train in place, from the checkpoint if there is one; rows of the log in `output/log.jsonl`.

    Each step's batch and noise depend on (seed, step) alone, so an interrupted run gives the same
    model as an undisturbed one.

    Args:
        cfg: all settings.
        model: trained in place.
        codec: decodes the images of validation and of the perceptual loss.
        source: of the pairs.
        output: folder of the run.

    Raises:
        UserError: the checkpoint is of another run, the loss is not finite, or a vision network's
            weights cannot be read.
    """
    base, optimizer = cfg.base, _optimizer(cfg.base, model)
    start = resume(cfg, output, model=model, optimizer=optimizer)
    perceptual, batches = _perceptual(base, codec), source.batches(start)
    train_steps(
        "base",
        base,
        output,
        start,
        losses=lambda step: _losses(base, model, perceptual, next(batches)),
        optimizer=optimizer,
        rates=lambda step: [learning_rate(step, base)],
        rate_key="base.lr",
        clip=base.clip,
        validate=lambda step: validate(model, codec, source.held_out(step), cfg.edit_steps),
        model=model,
    )


def _perceptual(cfg: BaseTrainingConfig, codec: PatchCodec) -> PerceptualLoss | None:
    if cfg.perceptual.network is None:
        return None
    decode = partial(decode_latents, codec)
    return PerceptualLoss(cfg.perceptual, decode, "base.perceptual.network=")


def _losses(
    cfg: BaseTrainingConfig,
    model: NanoModel,
    perceptual: PerceptualLoss | None,
    pairs: LatentPairs,
) -> dict[str, Tensor]:
    """Flow-matching loss of a batch and, where asked for, the others; scalars in fp32."""
    target, generator = pairs.target, pairs.generator
    noise = torch.randn(target.shape, generator=generator)
    sigma = draw_sigmas(len(target), "logit_normal", cfg.timestep_mean, cfg.timestep_std, generator)
    with torch.autocast("cpu", torch.bfloat16, enabled=cfg.bfloat16):
        states, pooled = model.encode_text(pairs.clip_ids, pairs.t5_ids)
        noisy = add_noise(target, noise, sigma)
        recorder, plan = _recorder(cfg), pairs.plan
        with ExitStack() as contexts:
            if recorder is not None and plan is not None:
                contexts.enter_context(recorder.recording(model.transformer, plan))
            velocity = predict_velocity(
                model.transformer,
                noisy,
                pairs.context,
                states.float(),
                pooled.float(),
                sigma,
                1.0,
            )
        drawn = target.shape[1] - pairs.semantic_channels
        error = velocity.float() - velocity_target(target, noise)
        losses = {"loss": error[:, :drawn].square().mean()}
        if recorder is not None and plan is not None:
            found = attention_loss(recorder.loss_maps(), plan, SupervisionConfig())
            for name, weight in (("focus", cfg.words.focus), ("cover", cfg.words.cover)):
                losses[name] = weight * found[name].mean()
        if model.alignment is not None:
            rows, columns = (length // 2 for length in pairs.context.shape[2:])
            losses["alignment"] = model.alignment.loss(pairs.pictures, (rows, columns))
        if perceptual is not None:
            predicted = noisy - sigma[:, None, None, None] * velocity.float()
            painted = pairs.painted if pairs.painted is not None else sigma.isfinite()
            if painted.any():
                distance = perceptual(predicted[painted], target[painted]).sum() / len(target)
                losses["perceptual"] = cfg.perceptual.weight * distance
    return losses


def _recorder(cfg: BaseTrainingConfig) -> AttentionRecorder | None:
    """Records the maps of the objects' words, where they are supervised."""
    wanted = cfg.words
    if not (wanted.focus or wanted.cover):
        return None
    return AttentionRecorder(wanted.layers, wanted.queries, source="base.words.layers")


@torch.no_grad()
def validate(
    model: NanoModel, codec: torch.nn.Module, held_out: dict[str, HeldOut], steps: int
) -> dict[str, float]:
    """Mean squared error in [-1,1] of held-out edits and of no edit at all, a task at a time."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scores: dict[str, float] = {}
    for task, pairs in held_out.items():
        states, pooled = model.encode_text(*model.tokenize(pairs.prompts))
        context = encode_images(codec, pairs.context)
        edited = sample(
            model.transformer,
            scheduler,
            context,
            states,
            pooled,
            steps=steps,
            guidance=1.0,
            noise=draw_noise(context.shape, 0),
        )
        picture = decode_latents(codec, edited)
        # 4: images are in [0,1] here, the error is given in [-1,1].
        scores[task] = 4 * F.mse_loss(picture, pairs.target).item()
        scores[f"{task}_unedited"] = 4 * F.mse_loss(pairs.context, pairs.target).item()
    return scores
