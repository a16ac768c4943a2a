"""Region routing: the attention maps of the clauses decide where each style acts.

Every (object, style) pair of a picture has a branch, which restyles the whole picture, and a gate,
the map of its own clause. The velocities are mixed token by token (`route_velocity`)::

    v = Σ_s g_s·v_s + (1 − Σ_s g_s)·v_keep,     v_keep = (x_σ − z_context) / σ

`v_keep` is the exact way back to the picture, so that nothing happens where all gates are closed.
Gates are read once, at σ = 1; no mask is given. Not in the paper: see the project's design notes.

Shape legend: B batch, S (object, style) pairs of a picture, h w image tokens, H W pixels, C latent
channels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from regionroute.config.run import RoutingConfig

_SMALLEST = 1e-12
# Where several objects want a token it goes to the one whose attention is higher, by this power of
# their ratio: mixed styles are no style.
_RIVALRY = 4.0
_SOFTNESS = 1.0  # pixels at the model's size


def region_level(maps: Tensor) -> Tensor:
    """The attention typical of each map's own region: its mean, weighted by itself.

    Unlike the plain mean it does not depend on how large the region is.

    Args:
        maps: [B,S,h,w], >= 0.

    Returns:
        [B,S,1,1].
    """
    total = maps.sum((-2, -1), keepdim=True)
    return maps.square().sum((-2, -1), keepdim=True) / total.clamp(min=_SMALLEST)


def boundary_map(maps: Tensor, config: RoutingConfig) -> Tensor:
    """``m / (m + threshold · level)``: .5 where the gate of `token_gates` is half open.

    Args:
        maps: attention of each pair's clause, [B,S,h,w], >= 0.
        config: its threshold is read.

    Returns:
        [B,S,h,w] in [0,1]; a map of zeros gives zeros.
    """
    half_open = config.threshold * region_level(maps)
    return maps / (maps + half_open).clamp(min=_SMALLEST)


def token_gates(maps: Tensor, config: RoutingConfig) -> Tensor:
    """Gates on the token grid: ``m^k / (m^k + (threshold · level)^k)``, k the sharpness.

    Scale-free, as Focus and Cover are; the level is `region_level`.

    Args:
        maps: attention of each pair's clause, [B,S,h,w], >= 0.
        config: form of the gates.

    Returns:
        [B,S,h,w] in [0,1], with a sum over the pairs of at most 1: what several want goes to the
        one that wants it most. A map of zeros gives a closed gate.
    """
    maps = maps.float()
    ratio = (maps + _SMALLEST).log() - (region_level(maps) + _SMALLEST).log()
    gates = torch.sigmoid(config.sharpness * (ratio - math.log(config.threshold))) * maps.gt(0)
    return gates * (_RIVALRY * ratio).softmax(1)


def widened(gates: Tensor, config: RoutingConfig) -> Tensor:
    """Gates for an edit that `composite` cuts out, so that no pixel is half edited twice.

    They open a token further where no other is, as far as `pixel_gates` may reach, and wider by
    the factor of `opening`.

    Args:
        gates: [B,S,h,w] in [0,1], sum over the pairs at most 1.
        config: its opening is read.

    Returns:
        [B,S,h,w] in [0,1], sum over the pairs at most 1; no gate that was open alone is smaller.
    """
    more = (F.max_pool2d(gates, 3, stride=1, padding=1) - gates).clamp(min=0)
    wide = gates + (1 - gates.sum(1, keepdim=True)).clamp(min=0) * share(more)
    return share((config.opening * wide).clamp(max=1))


def share(gates: Tensor) -> Tensor:
    """Where the gates [B,S,...] of several pairs add up to more than 1 they share it."""
    return gates / gates.sum(1, keepdim=True).clamp(min=1)


def sharpened(pictures: Tensor, gates: Tensor, strength: float) -> Tensor:
    """An unsharp mask inside the gates: ``x + strength · g · (x − blurred x)``.

    Args:
        pictures: x, [B,3,H,W] in [0,1].
        gates: [B,S,h,w] in [0,1], sum over the pairs at most 1.
        strength: >= 0.

    Returns:
        [B,3,H,W] in [0,1]; the pictures, to the bit, where all gates are 0 or the strength is.
    """
    if strength == 0:
        return pictures
    size = pictures.shape[-2], pictures.shape[-1]
    inside = F.interpolate(gates.to(pictures).sum(1, keepdim=True), size, mode="nearest-exact")
    return (pictures + strength * inside * (pictures - _blurred(pictures))).clamp(0, 1)


def _blurred(pictures: Tensor) -> Tensor:
    """By a Gaussian of `_SOFTNESS` pixels."""
    reach = torch.arange(-2, 3, device=pictures.device, dtype=pictures.dtype)
    weights = torch.exp(-0.5 * (reach / _SOFTNESS).square())
    rows = (weights / weights.sum()).view(1, 1, 1, 5).expand(pictures.shape[1], 1, 1, 5)
    padded = F.pad(pictures, (2, 2, 2, 2), mode="replicate")
    along = F.conv2d(padded, rows, groups=pictures.shape[1])
    return F.conv2d(along, rows.transpose(2, 3), groups=pictures.shape[1])


def keep_velocity(noisy: Tensor, context: Tensor, sigma: Tensor) -> Tensor:
    """The velocity that leads back to the context exactly: ``(x_σ − z) / σ``.

    Args:
        noisy: x_σ, [B,C,h,w].
        context: z, latents of the picture, [B,C,h,w].
        sigma: [B], > 0.

    Returns:
        [B,C,h,w] fp32.
    """
    return (noisy.float() - context.float()) / sigma.float().view(-1, 1, 1, 1)


def route_velocity(velocities: Tensor, gates: Tensor, keep: Tensor) -> Tensor:
    """``Σ_s g_s·v_s + (1 − Σ_s g_s)·v_keep``.

    Args:
        velocities: one a branch, [B,S,C,h,w].
        gates: [B,S,h',w'] on a grid that divides that of the latents, sum over S at most 1.
        keep: see `keep_velocity`, [B,C,h,w].

    Returns:
        [B,C,h,w] fp32; exactly `keep` where all gates are 0.
    """
    grid = velocities.shape[-2], velocities.shape[-1]
    weights = F.interpolate(gates.float(), grid, mode="nearest-exact")[:, :, None]
    # A sum of differences: exact where the gates are 0, and again where one of them is 1.
    return keep + (weights * (velocities.float() - keep[:, None])).sum(1)


def composite(edited: Tensor, source: Tensor, gates: Tensor) -> Tensor:
    """The edit inside the gates, the source outside, bit for bit where all gates are 0.

    Args:
        edited: [B,3,H,W] in [0,1].
        source: [B,3,H,W] in [0,1].
        gates: [B,S,H,W], see `pixel_gates`.

    Returns:
        [B,3,H,W] in [0,1].
    """
    inside = gates.sum(1, keepdim=True).clamp(0, 1)
    mixed = source + inside * (edited - source)
    return torch.where(inside > 0, mixed, source).clamp(0, 1)
