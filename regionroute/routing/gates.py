"""Region routing: the attention map of each (object, style) pair decides where its style acts.

Every pair of an image has a branch, which restyles the whole image, and a gate, computed from its
own attention map. The velocities are mixed per token (`route_velocity`)::

    v = Σ_s g_s·v_s + (1 − Σ_s g_s)·v_keep,     v_keep = (x_σ − z_context) / σ

`v_keep` leads back to the source exactly, so that closed gates change nothing. Gates are computed
once, at σ = 1; no mask is needed. This is an extension; the paper samples with the prompt alone.

Shape legend: B batch, S (object, style) pairs per image, h w image tokens, H W pixels, C latent
channels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from regionroute.config.run import RoutingConfig
from regionroute.data.images import STRIP

_SMALLEST = 1e-12
_NEVER = -1e4  # logarithm of a ratio that opens no gate and competes with none
# Where the gates of several pairs overlap, the weight of each is its attention to this power:
# a mean of two styles shows neither.
_COMPETITION = 4.0
_BLUR_SIGMA = 1.0  # pixels at the model's size


def attention_concentration(maps: Tensor) -> Tensor:
    """The mean of each map weighted by itself: the attention typical of its own region.

    Unlike the plain mean it does not depend on the size of the region.

    Args:
        maps: [B,S,h,w], >= 0.

    Returns:
        [B,S,1,1].
    """
    total = maps.sum((-2, -1), keepdim=True)
    return maps.square().sum((-2, -1), keepdim=True) / total.clamp(min=_SMALLEST)


def boundary_map(maps: Tensor, config: RoutingConfig) -> Tensor:
    """``m / (m + threshold · c)``: 0.5 where the gate of `token_gates` is 0.5.

    Args:
        maps: attention of each pair, [B,S,h,w], >= 0; c is its `attention_concentration`.
        config: its threshold is used.

    Returns:
        [B,S,h,w] in [0,1]; a map of zeros gives zeros.
    """
    midpoint = config.threshold * attention_concentration(maps)
    return maps / (maps + midpoint).clamp(min=_SMALLEST)


def token_gates(maps: Tensor, config: RoutingConfig) -> Tensor:
    """Gates on the token grid: ``m^k / (m^k + (threshold · c)^k)``, k the sharpness.

    Invariant to the scale of the maps, as the Focus and Cover losses are.

    Args:
        maps: attention of each pair, [B,S,h,w], >= 0; c is its `attention_concentration`.
        config: form of the gates.

    Returns:
        [B,S,h,w] in [0,1], with a sum over the pairs of at most 1: where several overlap, the
        strongest dominates. A map of zeros gives a closed gate.
    """
    maps = maps.float()
    ratio = (maps + _SMALLEST).log() - (attention_concentration(maps) + _SMALLEST).log()
    ratio = ratio.masked_fill(maps <= 0, _NEVER)
    gates = torch.sigmoid(config.sharpness * (ratio - math.log(config.threshold)))
    return gates * (_COMPETITION * ratio).softmax(1)


def widen_gates(gates: Tensor, config: RoutingConfig) -> Tensor:
    """Widen gates for an edit that `composite` cuts out, so that soft gates are not applied twice.

    They reach one token further where no other gate is open, as far as `pixel_gates` may reach,
    and are multiplied by `opening`.

    Args:
        gates: [B,S,h,w] in [0,1], sum over the pairs at most 1.
        config: its opening is used.

    Returns:
        [B,S,h,w] in [0,1], sum over the pairs at most 1; no gate that was open alone is smaller.
    """
    more = (F.max_pool2d(gates, 3, stride=1, padding=1) - gates).clamp(min=0)
    wide = gates + (1 - gates.sum(1, keepdim=True)).clamp(min=0) * normalize_gates(more)
    return normalize_gates((config.opening * wide).clamp(max=1))


def normalize_gates(gates: Tensor) -> Tensor:
    """Divide gates [B,S,...] by their sum over the pairs where it exceeds 1."""
    return gates / gates.sum(1, keepdim=True).clamp_(min=1)


def gates_on_grid(regions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Given regions [B,S,H,W] in [0,1] as gates on the token grid, [B,S,h,w]."""
    return normalize_gates(F.interpolate(regions, grid, mode="area"))


def sharpen(images: Tensor, gates: Tensor, strength: float) -> Tensor:
    """Apply an unsharp mask inside the gates: ``x + strength · g · (x − blurred x)``.

    Args:
        images: x, [B,3,H,W] in [0,1].
        gates: [B,S,h,w] in [0,1], sum over the pairs at most 1.
        strength: >= 0.

    Returns:
        [B,3,H,W] in [0,1]; bit for bit x where all gates, or the strength, are 0.
    """
    if strength == 0:
        return images
    size = images.shape[-2], images.shape[-1]
    inside = F.interpolate(gates.to(images).sum(1, keepdim=True), size, mode="nearest-exact")
    return (images + strength * inside * (images - _blurred(images))).clamp(0, 1)


def _blurred(images: Tensor) -> Tensor:
    """Blur with a Gaussian of `_BLUR_SIGMA` pixels."""
    offsets = torch.arange(-2, 3, device=images.device, dtype=images.dtype)
    weights = torch.exp(-0.5 * (offsets / _BLUR_SIGMA).square())
    rows = (weights / weights.sum()).view(1, 1, 1, 5).expand(images.shape[1], 1, 1, 5)
    padded = F.pad(images, (2, 2, 2, 2), mode="replicate")
    along = F.conv2d(padded, rows, groups=images.shape[1])
    return F.conv2d(along, rows.transpose(2, 3), groups=images.shape[1])


def keep_velocity(noisy: Tensor, context: Tensor, sigma: Tensor) -> Tensor:
    """The velocity that leads back to the context exactly: ``(x_σ − z) / σ``.

    Args:
        noisy: x_σ, [B,C,h,w].
        context: z, latents of the source image, [B,C,h,w].
        sigma: [B], > 0.

    Returns:
        [B,C,h,w] fp32.
    """
    return (noisy.float() - context.float()) / sigma.float().view(-1, 1, 1, 1)


def route_velocity(velocities: Tensor, gates: Tensor, keep: Tensor) -> Tensor:
    """``Σ_s g_s·v_s + (1 − Σ_s g_s)·v_keep``.

    Args:
        velocities: one per branch, [B,S,C,h,w].
        gates: [B,S,h',w'] on a grid that divides that of the latents, sum over S at most 1.
        keep: see `keep_velocity`, [B,C,h,w].

    Returns:
        [B,C,h,w] fp32; exactly `keep` where all gates are 0.
    """
    grid = velocities.shape[-2], velocities.shape[-1]
    weights = F.interpolate(gates.float(), grid, mode="nearest-exact")[:, :, None]
    # A sum of differences: exact where the gates are 0, and again where one of them is 1.
    return keep + (weights * (velocities.float() - keep[:, None])).sum(1)


def composite(edited: Tensor, source: Tensor, gates: Tensor, *, in_place: bool = False) -> Tensor:
    """The edit inside the gates, the source outside, bit for bit where all gates are 0.

    Args:
        edited: [B,3,H,W] in [0,1].
        source: [B,3,H,W] in [0,1].
        gates: [B,S,H,W], see `pixel_gates`.
        in_place: write the result into `edited`, which saves memory.

    Returns:
        [B,3,H,W] in [0,1].
    """
    out = edited if in_place else torch.empty_like(edited)
    for first in range(0, source.shape[2], STRIP):
        strip = (slice(None), slice(None), slice(first, first + STRIP))
        inside = gates[strip].sum(1, keepdim=True).clamp(0, 1)
        mixed = source[strip] + inside * (edited[strip] - source[strip])
        out[strip] = torch.where(inside > 0, mixed, source[strip]).clamp(0, 1)
    return out
