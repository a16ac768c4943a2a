"""Focus and Cover: the losses on a style phrase's attention maps (RegionRoute, arXiv:2602.19254).

Both are pure functions of maps [B,S,h,w] in fp32 and return one value a sample, the mean over the
sample's valid objects (0 if there is none). A row depends on nothing outside its own sample.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from regionroute.attention.maps import mean_map
from regionroute.attention.plan import AttentionPlan
from regionroute.config.choices import Aggregate, CoverMode, FocusInput

# Below every attention probability that matters (1e-4 is typical), above fp32's underflow.
EPS = 1e-12


class LossSettings(Protocol):
    """The part of the supervision settings that `attention_loss` reads."""

    @property
    def focus_input(self) -> FocusInput:
        """Mode of `focus_loss`."""

    @property
    def tau(self) -> float:
        """Temperature of `focus_loss`."""

    @property
    def cover_mode(self) -> CoverMode:
        """Mode of `cover_loss`."""

    @property
    def alpha(self) -> float:
        """Sharpness of `cover_loss`."""

    @property
    def aggregate(self) -> Aggregate:
        """Whether losses or maps are averaged over the layers."""


def focus_loss(
    maps: Tensor,
    masks: Tensor,
    valid: Tensor,
    *,
    focus_input: FocusInput = "ratio",
    tau: float = 1.0,
) -> Tensor:
    """KL(mask ‖ map): all of the phrase's attention should lie on its object.

    Args:
        maps: [B,S,h,w] attention, >= 0, any floating dtype.
        masks: [B,S,h,w] soft object masks in [0,1].
        valid: [B,S] bool, False = no such object. An empty mask counts as invalid.
        focus_input: "ratio" compares the mask with map^(1/tau) made to sum to one, so the scale
            of the attention does not matter; "prob" with softmax(map/tau), as printed in the
            paper, which is nearly flat for real attention values.
        tau: temperature, > 0.

    Returns:
        [B] fp32, 0 for a map proportional to its mask, log(h·w/|mask|) for a flat one if the mask
        is binary.

    Raises:
        ValueError: unknown `focus_input`.
    """
    if focus_input not in ("ratio", "prob"):
        raise ValueError(f'focus_input must be "ratio" or "prob", got {focus_input!r}')
    maps, masks = maps.float().flatten(2), masks.float().flatten(2)
    scores = (maps + EPS).log() if focus_input == "ratio" else maps
    log_map = F.log_softmax(scores / tau, dim=-1)
    area = masks.sum(-1, keepdim=True)
    wanted = masks / area.clamp(min=EPS)
    divergence = (torch.xlogy(wanted, wanted) - wanted * log_map).sum(-1)
    return _object_mean(divergence, valid & area.squeeze(-1).gt(0))


def cover_loss(
    maps: Tensor,
    masks: Tensor,
    valid: Tensor,
    *,
    cover_mode: CoverMode = "logratio",
    alpha: float = 1.0,
) -> Tensor:
    """Pixel-wise binary cross-entropy: attend everywhere on the object, nowhere else.

    Args:
        maps: [B,S,h,w] attention, >= 0, any floating dtype.
        masks: [B,S,h,w] soft object masks in [0,1].
        valid: [B,S] bool, False = no such object. An empty mask counts as invalid.
        cover_mode: "logratio" takes alpha·log(map / mean of the map) as logits, so the scale of
            the attention does not matter; "prob" takes alpha·map, as printed in the paper, where
            the background cannot fall below log 2.
        alpha: sharpness of the logits.

    Returns:
        [B] fp32; for "logratio" log 2 for a flat map and f·log(1+f) for a map proportional to a
        mask that covers the fraction f.

    Raises:
        ValueError: unknown `cover_mode`.
    """
    if cover_mode not in ("logratio", "prob"):
        raise ValueError(f'cover_mode must be "logratio" or "prob", got {cover_mode!r}')
    maps, masks = maps.float().flatten(2), masks.float().flatten(2)
    if cover_mode == "logratio":
        maps = (maps + EPS).log() - (maps.mean(-1, keepdim=True) + EPS).log()
    entropy = F.binary_cross_entropy_with_logits(alpha * maps, masks, reduction="none").mean(-1)
    return _object_mean(entropy, valid & masks.sum(-1).gt(0))


def attention_loss(
    maps: Mapping[str, Tensor], plan: AttentionPlan, settings: LossSettings
) -> dict[str, Tensor]:
    """Focus and Cover of recorded maps, unweighted.

    Args:
        maps: layer -> [B,S,h,w] or, one a token, [B,S,K,h,w], as `AttentionRecorder.loss_maps`
            gives them. Losses of tokens are averaged over those of their pair.
        plan: the masks and valid flags the maps were recorded with.
        settings: modes and constants. ``aggregate="layer"`` averages the losses of the layers,
            "map" takes one loss of the layers' mean map.

    Returns:
        "focus" and "cover", each [B] fp32.

    Raises:
        ValueError: no maps, or an unknown mode.
    """
    if not maps:
        raise ValueError("there are no attention maps to supervise")
    if settings.aggregate == "map":
        stacked = mean_map(maps)[None]
    elif settings.aggregate == "layer":
        stacked = torch.stack(list(maps.values()))
    else:
        raise ValueError(f'aggregate must be "layer" or "map", got {settings.aggregate!r}')
    if stacked.ndim == 6:
        return _token_loss(stacked, plan, settings)
    layers = stacked.shape[0]
    rows = stacked.flatten(0, 1)  # [L*B,S,h,w]
    masks = plan.masks.to(rows.device).repeat(layers, 1, 1, 1)
    valid = plan.valid.to(rows.device).repeat(layers, 1)
    focus = focus_loss(rows, masks, valid, focus_input=settings.focus_input, tau=settings.tau)
    cover = cover_loss(rows, masks, valid, cover_mode=settings.cover_mode, alpha=settings.alpha)
    return {
        "focus": focus.unflatten(0, (layers, -1)).mean(0),
        "cover": cover.unflatten(0, (layers, -1)).mean(0),
    }


def _token_loss(stacked: Tensor, plan: AttentionPlan, settings: LossSettings) -> dict[str, Tensor]:
    """`attention_loss` of maps per token, [L,B,S,K,h,w]: each has the mask of its pair."""
    layers, batch, pairs = stacked.shape[:3]
    rows = stacked.flatten(0, 2)  # [L*B*S,K,h,w]: a pair is a sample, its tokens are the objects
    masks = plan.masks.to(rows.device)[None, :, :, None].expand_as(stacked).flatten(0, 2)
    real = plan.token_index.to(rows.device).ge(0).expand(layers, -1, -1, -1).flatten(0, 2)
    focus = focus_loss(rows, masks, real, focus_input=settings.focus_input, tau=settings.tau)
    cover = cover_loss(rows, masks, real, cover_mode=settings.cover_mode, alpha=settings.alpha)
    has_mask = plan.masks.to(rows.device).flatten(2).sum(-1).gt(0)
    valid = (plan.valid.to(rows.device) & has_mask).repeat(layers, 1)
    return {
        name: _object_mean(losses.view(layers * batch, pairs), valid).view(layers, batch).mean(0)
        for name, losses in (("focus", focus), ("cover", cover))
    }


def _object_mean(losses: Tensor, valid: Tensor) -> Tensor:
    """Mean of [B,S] over the valid objects of each sample, 0 where there is none."""
    return torch.where(valid, losses, 0.0).sum(-1) / valid.sum(-1).clamp(min=1)
