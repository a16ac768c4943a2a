"""Flow matching: noise levels, the noisy latent and its velocity, the model call, the sampler.

x_σ = (1−σ)·z + σ·ε with velocity ε − z, σ in [0,1], 1 is pure noise (rectified flow,
arXiv:2209.03003).
Shape legend: B batch, C latent channels, h w latent rows and columns, T text tokens, D text width,
P pooled width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from regionroute.config.choices import Timesteps
from regionroute.diffusion.families import Text, family_of
from regionroute.diffusion.latents import pack, unpack

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler

TIMESTEPS = 1000  # diffusers counts time 0..1000; the transformer takes σ and multiplies itself
SIGMA_MIN = 1 / TIMESTEPS

StepCallback: TypeAlias = Callable[[int, float, Tensor], None]


def draw_sigmas(
    n: int,
    timesteps: Timesteps = "uniform",
    mean: float = 0.0,
    std: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Noise levels for a training batch.

    Args:
        n: how many.
        timesteps: ``uniform`` over [1/1000, 1), or ``logit_normal`` = sigmoid(mean + std·N(0,1)).
        mean: of the logit; above 0 favours noisy levels. Unused by ``uniform``.
        std: of the logit. Unused by ``uniform``.
        generator: on the CPU, so that the draw is the same for every device.

    Returns:
        [n] float32 on the CPU, never 0 (the velocity there carries no information about the image).

    Raises:
        ValueError: unknown distribution.
    """
    if timesteps == "uniform":
        return SIGMA_MIN + (1 - SIGMA_MIN) * torch.rand(n, generator=generator)
    if timesteps == "logit_normal":
        return torch.sigmoid(mean + std * torch.randn(n, generator=generator)).clamp(SIGMA_MIN, 1)
    raise ValueError(f"unknown timestep distribution {timesteps!r}; use uniform or logit_normal")


def add_noise(latents: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x_σ = (1−σ)·z + σ·ε.

    Args:
        latents: z, [B,C,h,w].
        noise: ε, [B,C,h,w].
        sigma: σ, [B] in [0,1].

    Returns:
        [B,C,h,w].
    """
    level = sigma.to(latents)[:, None, None, None]
    return (1 - level) * latents + level * noise


def velocity_target(latents: Tensor, noise: Tensor) -> Tensor:
    """ε − z, what the transformer learns to predict at every σ; all [B,C,h,w]."""
    return noise - latents


def predict_velocity(
    transformer: Any,
    noisy: Tensor,
    context: Tensor,
    prompt_embeds: Tensor,
    pooled: Tensor,
    sigma: Tensor,
    guidance: float,
) -> Tensor:
    """One call of the transformer, fed exactly as its stock pipeline feeds it.

    The only place of this project that calls it: training, routing and sampling agree on
    packing, order of tokens and ids because they all come here.

    Args:
        transformer: of any family and size, with or without adapters.
        noisy: x_σ, [B,C,h,w].
        context: latents of the image to edit, [B,C,h',w']; usually the same size.
        prompt_embeds: text states, [B,T,D]; their dtype is the dtype of the whole call.
        pooled: pooled text state, [B,P]; P is 0 where the family has none.
        sigma: [B] in [0,1].
        guidance: strength fed to guidance-distilled models (1.0 in training, 3.5 at inference);
            ignored by models without a guidance embedding, see :func:`guide`.

    Returns:
        Predicted velocity, [B,C,h,w].
    """
    height, width = noisy.shape[2:]
    dtype, device = prompt_embeds.dtype, prompt_embeds.device
    target_tokens = pack(noisy.to(device, dtype))
    # σ goes through 1000 and back because the pipelines' does: same rounding in low precision.
    timestep = (sigma.to(device) * TIMESTEPS).to(dtype) / TIMESTEPS
    velocity = transformer(
        hidden_states=torch.cat([target_tokens, pack(context.to(device, dtype))], dim=1),
        timestep=timestep,
        encoder_hidden_states=prompt_embeds,
        return_dict=False,
        **family_of(transformer).arguments(
            transformer, prompt_embeds, pooled, guidance,
            (height // 2, width // 2), (context.shape[2] // 2, context.shape[3] // 2),
        ),
    )[0]  # fmt: skip
    return unpack(velocity[:, : target_tokens.shape[1]], height, width)


def predict_rows(
    transformer: Any,
    noisy: Tensor,
    context: Tensor,
    prompt_embeds: Tensor,
    pooled: Tensor,
    sigma: Tensor,
    guidance: float,
    rows: Tensor,
) -> Tensor:
    """As `predict_velocity`, but the transformer is given some of the image tokens only.

    Call it inside `RowCache.partial`, which knows the positions of these tokens; those that the
    transformer gets here are ignored.

    Args:
        transformer: see :func:`predict_velocity`, as all that follow.
        noisy: [B,C,h,w].
        context: [B,C,h',w'].
        prompt_embeds: [B,T,D].
        pooled: [B,P].
        sigma: [B].
        guidance: see :func:`predict_velocity`.
        rows: positions among the image tokens [noisy target, context], long [B,R].

    Returns:
        Predicted velocity of target tokens among `rows`, 0 elsewhere, [B,C,h,w].
    """
    height, width = noisy.shape[2:]
    dtype, device = prompt_embeds.dtype, prompt_embeds.device
    target = pack(noisy.to(device, dtype))
    tokens = torch.cat([target, pack(context.to(device, dtype))], dim=1)
    timestep = (sigma.to(device) * TIMESTEPS).to(dtype) / TIMESTEPS
    index = rows[..., None].expand(-1, -1, tokens.shape[2])
    velocity = transformer(
        hidden_states=tokens.gather(1, index),
        timestep=timestep,
        encoder_hidden_states=prompt_embeds,
        return_dict=False,
        **family_of(transformer).arguments(
            transformer, prompt_embeds, pooled, guidance, (1, rows.shape[1]), (0, 0)
        ),
    )[0]
    every = velocity.new_zeros(tokens.shape).scatter_(1, index, velocity)
    return unpack(every[:, : target.shape[1]], height, width)


def guide(velocity: Tensor, without: Tensor, guidance: float) -> Tensor:
    """``without + guidance · (velocity − without)``: classifier-free guidance, arXiv:2207.12598."""
    return without + guidance * (velocity - without)


def draw_noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal noise that depends on the seed alone: drawn on the CPU in float32."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def sample(
    transformer: Any,
    scheduler: FlowMatchEulerDiscreteScheduler,
    context: Tensor,
    prompt_embeds: Tensor,
    pooled: Tensor,
    *,
    steps: int,
    guidance: float,
    noise: Tensor,
    callback: StepCallback | None = None,
    observe: Callable[[int], AbstractContextManager[object]] | None = None,
    negative: Text | None = None,
) -> Tensor:
    """Denoises from pure noise as the stock pipelines do; gradients are off.

    Args:
        transformer: the model.
        scheduler: see :func:`denoise`.
        context: latents of the image to edit, [B,C,h,w]; the result has the same shape.
        prompt_embeds: [B,T,D].
        pooled: [B,P].
        steps: number of model calls, at least 1.
        guidance: see :func:`predict_velocity`.
        noise: starting point, [B,C,h,w].
        callback: see :func:`denoise`.
        observe: gives a context manager for each step that surrounds its model call, for
            example one that records attention.
        negative: states of the empty prompt, [1,T,D] and [1,P], for classifier-free guidance of
            bases without embedded guidance; None: without.

    Returns:
        Latents of the edited image, [B,C,h,w].
    """

    def velocity(step: int, latents: Tensor, sigma: Tensor) -> Tensor:
        with observe(step) if observe else nullcontext():
            speed = predict_velocity(
                transformer, latents, context, prompt_embeds, pooled, sigma, guidance
            )
        if negative is None:
            return speed
        embeds, empty = (states.expand(len(latents), *states.shape[1:]) for states in negative)
        without = predict_velocity(transformer, latents, context, embeds, empty, sigma, guidance)
        return guide(speed, without, guidance)

    shift = family_of(transformer).time_shift
    return denoise(velocity, scheduler, noise.to(prompt_embeds), steps, callback, shift=shift)


@torch.no_grad()
def denoise(
    velocity: Callable[[int, Tensor, Tensor], Tensor],
    scheduler: FlowMatchEulerDiscreteScheduler,
    noise: Tensor,
    steps: int,
    callback: StepCallback | None = None,
    *,
    shift: Callable[[Any, int, int], float],
) -> Tensor:
    """Follows a velocity from pure noise (σ = 1) to an image; gradients are off.

    Args:
        velocity: of (step, latents [B,C,h,w], σ [B]), [B,C,h,w].
        scheduler: gives the step rule; it is copied, never changed.
        noise: starting point, [B,C,h,w].
        steps: number of calls of `velocity`, at least 1.
        callback: called after each step with (step, σ of that step, latents [B,C,h,w]).
        shift: of the family, see `Family.time_shift`.

    Returns:
        [B,C,h,w].
    """
    latents = noise
    scheduler = copy.deepcopy(scheduler)
    image_tokens = (latents.shape[2] // 2) * (latents.shape[3] // 2)
    scheduler.set_timesteps(
        sigmas=np.linspace(1.0, 1 / steps, steps),
        device=latents.device,
        mu=shift(scheduler, image_tokens, steps),
    )
    scheduler.set_begin_index(0)
    for step, time in enumerate(scheduler.timesteps):
        sigma = (time / TIMESTEPS).expand(latents.shape[0])
        speed = velocity(step, latents, sigma)
        latents = scheduler.step(speed, time, latents, return_dict=False)[0]
        if callback:
            callback(step, float(sigma[0]), latents)
    return latents
