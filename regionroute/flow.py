"""Flow matching: noise levels, the noisy latent and its velocity, the model call, the sampler.

x_σ = (1−σ)·z + σ·ε with velocity ε − z, σ in [0,1], 1 is pure noise (spec §3).
Shape legend: B batch, C latent channels, h w latent rows and columns, T text tokens, D text width,
P pooled width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from regionroute.latents import CONTEXT_FRAME, TARGET_FRAME, image_ids, pack, text_ids, unpack

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

TIMESTEPS = 1000  # diffusers counts time 0..1000; the transformer takes σ and multiplies itself
SIGMA_MIN = 1 / TIMESTEPS

StepCallback: TypeAlias = Callable[[int, float, Tensor], None]


def draw_sigmas(
    n: int,
    timesteps: Literal["uniform", "logit_normal"] = "uniform",
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
        [n] float32 on the CPU, never 0 (the velocity there says nothing of the picture).

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
    transformer: FluxTransformer2DModel,
    noisy: Tensor,
    context: Tensor,
    prompt_embeds: Tensor,
    pooled: Tensor,
    sigma: Tensor,
    guidance: float,
) -> Tensor:
    """One call of the transformer, fed exactly as ``FluxKontextPipeline`` feeds it.

    The only place of this project that calls it: training, routing and sampling agree on
    packing, order of tokens and ids because they all come here.

    Args:
        transformer: ``FluxTransformer2DModel`` of any size, with or without adapters.
        noisy: x_σ, [B,C,h,w].
        context: latents of the picture to edit, [B,C,h',w']; usually the same size.
        prompt_embeds: T5 states, [B,T,D]; their dtype is the dtype of the whole call.
        pooled: CLIP's pooled state, [B,P].
        sigma: [B] in [0,1].
        guidance: strength fed to guidance-distilled models (1.0 in training, 3.5 at inference);
            ignored by models without a guidance embedding.

    Returns:
        Predicted velocity, [B,C,h,w].
    """
    batch, _, height, width = noisy.shape
    dtype, device = prompt_embeds.dtype, prompt_embeds.device
    target_tokens = pack(noisy.to(device, dtype))
    tokens = torch.cat([target_tokens, pack(context.to(device, dtype))], dim=1)
    ids = torch.cat(
        [
            image_ids(height // 2, width // 2, TARGET_FRAME),
            image_ids(context.shape[2] // 2, context.shape[3] // 2, CONTEXT_FRAME),
        ]
    )
    # σ goes through 1000 and back because the pipeline's does: same rounding in low precision.
    timestep = (sigma.to(device) * TIMESTEPS).to(dtype) / TIMESTEPS
    strength = None
    if transformer.config.guidance_embeds:
        strength = torch.full([batch], guidance, device=device, dtype=torch.float32)
    velocity = transformer(
        hidden_states=tokens,
        timestep=timestep,
        guidance=strength,
        pooled_projections=pooled.to(device, dtype),
        encoder_hidden_states=prompt_embeds,
        txt_ids=text_ids(prompt_embeds.shape[1]).to(device),
        img_ids=ids.to(device),
        return_dict=False,
    )[0]
    return unpack(velocity[:, : target_tokens.shape[1]], height, width)


def time_shift(scheduler: FlowMatchEulerDiscreteScheduler, image_tokens: int) -> float:
    """μ of the resolution-dependent shift: linear in the number of noisy-target tokens."""
    config = scheduler.config
    base_tokens, max_tokens = config.base_image_seq_len, config.max_image_seq_len
    slope = (config.max_shift - config.base_shift) / (max_tokens - base_tokens)
    return image_tokens * slope + config.base_shift - slope * base_tokens


def draw_noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal noise that depends on the seed alone: drawn on the CPU in float32."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def sample(
    transformer: FluxTransformer2DModel,
    scheduler: FlowMatchEulerDiscreteScheduler,
    context: Tensor,
    prompt_embeds: Tensor,
    pooled: Tensor,
    *,
    steps: int,
    guidance: float,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    callback: StepCallback | None = None,
    observe: Callable[[int], AbstractContextManager[object]] | None = None,
) -> Tensor:
    """Denoises from pure noise as ``FluxKontextPipeline`` does; gradients are off.

    Args:
        transformer: the model.
        scheduler: see :func:`denoise`.
        context: latents of the picture to edit, [B,C,h,w]; the result has the same shape.
        prompt_embeds: [B,T,D].
        pooled: [B,P].
        steps: number of model calls, at least 1.
        guidance: see :func:`predict_velocity`.
        noise: starting point, [B,C,h,w]; drawn from ``generator`` if absent.
        generator: a CPU generator.
        callback: see :func:`denoise`.
        observe: gives a context manager for each step that surrounds its model call, for
            example one that records attention.

    Returns:
        Latents of the edited picture, [B,C,h,w].
    """
    if noise is None:
        noise = torch.randn(context.shape, generator=generator)

    def velocity(step: int, latents: Tensor, sigma: Tensor) -> Tensor:
        with observe(step) if observe else nullcontext():
            return predict_velocity(
                transformer, latents, context, prompt_embeds, pooled, sigma, guidance
            )

    return denoise(velocity, scheduler, noise.to(prompt_embeds), steps, callback)


@torch.no_grad()
def denoise(
    velocity: Callable[[int, Tensor, Tensor], Tensor],
    scheduler: FlowMatchEulerDiscreteScheduler,
    noise: Tensor,
    steps: int,
    callback: StepCallback | None = None,
) -> Tensor:
    """Follows a velocity from pure noise (σ = 1) to a picture; gradients are off.

    Args:
        velocity: of (step, latents [B,C,h,w], σ [B]), [B,C,h,w].
        scheduler: gives the shift and the step rule; it is copied, never changed.
        noise: starting point, [B,C,h,w].
        steps: number of calls of `velocity`, at least 1.
        callback: called after each step with (step, σ of that step, latents [B,C,h,w]).

    Returns:
        [B,C,h,w].
    """
    latents = noise
    scheduler = copy.deepcopy(scheduler)
    image_tokens = (latents.shape[2] // 2) * (latents.shape[3] // 2)
    scheduler.set_timesteps(
        sigmas=np.linspace(1.0, 1 / steps, steps),
        device=latents.device,
        mu=time_shift(scheduler, image_tokens),
    )
    scheduler.set_begin_index(0)
    for step, time in enumerate(scheduler.timesteps):
        sigma = (time / TIMESTEPS).expand(latents.shape[0])
        speed = velocity(step, latents, sigma)
        latents = scheduler.step(speed, time, latents, return_dict=False)[0]
        if callback:
            callback(step, float(sigma[0]), latents)
    return latents
