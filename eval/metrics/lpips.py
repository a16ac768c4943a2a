"""Perceptual change of the background, with no view of the object."""

import torch
from torch import Tensor

from eval.features import PerceptualDistance
from eval.metrics.region import masked_mean


def lpips_bg(output: Tensor, content: Tensor, mask: Tensor, distance: PerceptualDistance) -> Tensor:
    """Spatial LPIPS averaged over the background, the source pasted into the edit inside the mask.

    Pasting keeps the object out of the receptive fields: the value is zero if and only if the
    network sees an unchanged background (RegionRoute §9 [R]).

    Args:
        output: edited pictures [B,3,H,W] in [0,1].
        content: unedited pictures [B,3,H,W] in [0,1].
        mask: [B,1,H,W], 1 on the object.
        distance: gives the spatial map.

    Returns:
        [B]; NaN without background, and for pictures below the network's smallest size.
    """
    pasted = torch.where(mask > 0.5, content, output)
    return masked_mean(distance.spatial_map(pasted, content), 1 - mask)
