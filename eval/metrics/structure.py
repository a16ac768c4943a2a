"""How much of the source's structure an edit keeps: SSIM and LPIPS of whole views."""

from collections.abc import Sequence

import torch
from torch import Tensor

from eval.encoders.extras import SSIM_WINDOW, structural_similarity
from eval.encoders.features import PerceptualDistance


def ssim(output: Sequence[Tensor], content: Sequence[Tensor]) -> Tensor:
    """Structural similarity (Wang et al. 2004) of V pairs [3,h,w] in [0,1]: [V].

    11-pixel Gaussian window (σ 1.5), each channel by itself, data range 1, mean over the pixels
    whose window lies inside; NaN where a side is below 11 pixels. In double precision.
    """
    values = []
    for a, b in zip(output, content, strict=True):
        if min(a.shape[1:]) < SSIM_WINDOW:
            values.append(torch.tensor(torch.nan))
            continue
        values.append(structural_similarity(a[None].double(), b[None].double())[0].float().cpu())
    return torch.stack(values)


def lpips(
    output: Sequence[Tensor], content: Sequence[Tensor], distance: PerceptualDistance
) -> Tensor:
    """LPIPS of V pairs [3,h,w] in [0,1], sizes may differ: [V]; NaN below 32 pixels."""
    values = []
    for a, b in zip(output, content, strict=True):
        # Equal images have distance zero; the network need not be asked.
        same = torch.equal(a, b)
        values.append(torch.zeros(()) if same else distance.distance(a[None], b[None])[0].cpu())
    return torch.stack(values)
