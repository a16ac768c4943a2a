"""Perceptual change of the background, with no view of the object."""

import torch
from torch import Tensor

from eval.encoders.features import PerceptualDistance
from regionroute.data.region_scores import masked_mean

AT_ONCE = 4  # images in one pass, to spare memory


def lpips_bg(output: Tensor, content: Tensor, mask: Tensor, distance: PerceptualDistance) -> Tensor:
    """Spatial LPIPS averaged over the background, the source pasted into the edit inside the mask.

    Pasting keeps the object out of the receptive fields: the value is zero if and only if the
    network sees an unchanged background.

    Args:
        output: edited images [B,3,H,W] in [0,1].
        content: unedited images [B,3,H,W] in [0,1].
        mask: [B,1,H,W], 1 on the object.
        distance: gives the spatial map.

    Returns:
        [B]; NaN without background, and for changed images too small for the network.
    """
    pasted = torch.where(mask > 0.5, content, output)
    spatial = torch.zeros_like(content[:, :1])
    # Equal images have distance zero: floor, ceiling and pasted results need no network.
    changed = (pasted != content).flatten(1).any(1).nonzero()[:, 0]
    for some in changed.split(AT_ONCE):
        spatial[some] = distance.spatial_map(pasted[some], content[some])
    return masked_mean(spatial, 1 - mask)
