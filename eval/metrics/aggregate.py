"""One number from two components of the score, for ranking many methods at a glance.

The Regional Style Editing Score has components and no sum of its own. This aggregate is ours, is
computed only when it is asked for, and is always shown next to the components that it is made of.
"""

import torch
from torch import Tensor


def rse_aggregate(rsm: Tensor, rsm_source: Tensor, rsm_target: Tensor, lpips_bg: Tensor) -> Tensor:
    """Geometric mean of the normalised style match and the preservation of the background.

    √(s·p) with s = (RSM(edit) − RSM(source)) / (RSM(target) − RSM(source)), clipped to [0,1], and
    p = 1 − min(LPIPS_bg, 1). An edit has to be good in both: the unedited image has s = 0, a
    restyled background lowers p, and either makes the product small.

    Args:
        rsm: style match of the edits, [B] in [0,1].
        rsm_source: of the unedited images, [B].
        rsm_target: of the targets, [B].
        lpips_bg: perceptual change of the background, [B] ≥ 0.

    Returns:
        [B] in [0,1]. NaN without background, and where the encoder sees no more of the style in the
        target than in the source, because there is no scale then.
    """
    gain = rsm_target - rsm_source
    style = ((rsm - rsm_source) / gain).clamp(0, 1)
    value = (style * (1 - lpips_bg.clamp(max=1))).sqrt()
    return torch.where(gain > 0, value, torch.nan)
