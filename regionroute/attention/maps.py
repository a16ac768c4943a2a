"""Attention maps: how several become one, where the style will go, how well that is the object."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from regionroute.config.sites import Combine
from regionroute.data.region_scores import map_iou, share_inside


def mean_map(maps: Mapping[str, Tensor]) -> Tensor:
    """Mean [B,S,h,w] of several layers' maps."""
    return torch.stack(list(maps.values())).mean(0)


def combine_maps(maps: Sequence[Tensor], how: Combine = "normalised") -> Tensor:
    """One map of several.

    Args:
        maps: each [...,h,w], >= 0.
        how: "mean" of the maps as they are, in which the strongest attention rules, or
            "normalised": the mean of the maps over their own means, in which each counts alike, or
            "geometric": their geometric mean, in which heads add up their logits, as heads do that
            share the features of a word among them.

    Returns:
        [...,h,w].
    """
    stacked = torch.stack(list(maps))
    if how == "geometric":
        tiny = torch.finfo(stacked.dtype).tiny
        return stacked.clamp(min=tiny).log().mean(0).exp()
    if how == "normalised":
        stacked = normalised(stacked)
    return stacked.mean(0)


def normalised(maps: Tensor) -> Tensor:
    """Maps [...,h,w] over their own means; an all-zero map stays zero."""
    return maps / maps.mean((-2, -1), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)


def region_map(attention: Tensor) -> Tensor:
    """Where the style will go: M / (M + mean of M), scale-free.

    Args:
        attention: map M [...,h,w], >= 0.

    Returns:
        [...,h,w] in [0,1]. 0.5 is the decision boundary of Cover's "logratio" mode, of which this
        is the sigmoid at alpha 1; an all-zero map gives 0.5 everywhere.
    """
    attention = attention.float()
    mean = attention.mean((-2, -1), keepdim=True)
    tiny = torch.finfo(attention.dtype).tiny
    return (attention + tiny) / (attention + mean + 2 * tiny)


def map_scores(attention: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """How well maps agree with masks on the same grid.

    Args:
        attention: [...,h,w], >= 0.
        masks: soft masks, broadcastable to it. The object is the cells that are at least half
            covered or, where there are none, those it touches: a small object cannot vanish.

    Returns:
        IoU of ``region_map > .5`` with the object, and the share of the attention inside the soft
        mask, both [...]; NaN for an empty mask.
    """
    return map_iou(region_map(attention), masks), share_inside(attention, masks)
