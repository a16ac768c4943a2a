"""Photos as other light and other cameras would have made them."""

import torch
from torch import Generator, Tensor


def in_other_colours(pictures: Tensor, generator: Generator) -> Tensor:
    """Pictures in another brightness, contrast, saturation and balance, now and then grey.

    What is in them stays what it is, so that what names it cannot lean on its colours.

    Args:
        pictures: [B,3,S,S] in [0,1].
        generator: decides, for each image anew.

    Returns:
        [B,3,S,S] in [0,1].
    """

    def factor(low: float, high: float, channels: int = 1) -> Tensor:
        drawn = torch.rand(len(pictures), channels, 1, 1, generator=generator)
        return low + (high - low) * drawn

    pictures = pictures * factor(0.6, 1.4)
    mean = pictures.mean((1, 2, 3), keepdim=True)
    pictures = (pictures - mean) * factor(0.6, 1.4) + mean
    grey = pictures.mean(1, keepdim=True)
    kept = torch.where(factor(0, 1) < 0.1, 0, factor(0.5, 1.5))
    pictures = (pictures - grey) * kept + grey
    return (pictures * factor(0.85, 1.15, 3)).clamp(0, 1)
