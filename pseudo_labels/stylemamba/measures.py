"""Measures of a stylisation, as pure functions: strength of the style, preservation of content.

`directional_score` is also what the losses optimise: measure it with another encoder than that of
the training, otherwise it rewards adversarial textures.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pseudo_labels.stylemamba.losses import content_loss

__all__ = ["content_loss", "directional_score", "ssim"]

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2


def directional_score(source: Tensor, styled: Tensor, direction: Tensor) -> Tensor:
    """Directional CLIP score: cos(E(Y) − E(X), ΔT).

    Args:
        source: embeddings E(X) [B, K].
        styled: embeddings E(Y) [B, K].
        direction: ΔT [B, K] or [K].

    Returns:
        [B] in [-1, 1]; 0 without an edit.
    """
    return F.cosine_similarity(styled - source, direction.expand_as(source), dim=-1)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004): 11 px Gaussian window, channels averaged.

    Windows that cross the image border are skipped.

    Args:
        a: images [B, 3, H, W] in [0, 1].
        b: images of the same shape.

    Returns:
        [B] in [-1, 1], 1 for equal images; differentiable.

    Raises:
        ValueError: shapes that differ, or a side below 11 pixels.
    """
    if a.shape != b.shape:
        raise ValueError(f"images of {list(a.shape)} and {list(b.shape)}")
    if min(a.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(f"images of {list(a.shape[-2:])} are smaller than the window, 11 px")
    mean_a, mean_b = _blur(a), _blur(b)
    variance_a = _blur(a * a) - mean_a**2
    variance_b = _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    light = (2 * mean_a * mean_b + SSIM_C1) / (mean_a**2 + mean_b**2 + SSIM_C1)
    structure = (2 * covariance + SSIM_C2) / (variance_a + variance_b + SSIM_C2)
    return (light * structure).mean((1, 2, 3))


def _blur(images: Tensor) -> Tensor:
    """Gaussian means over all windows inside the image, [B, c, H - 10, W - 10]."""
    place = torch.arange(SSIM_WINDOW, dtype=images.dtype, device=images.device) - SSIM_WINDOW // 2
    weights = torch.exp(-(place**2) / (2 * SSIM_SIGMA**2))
    weights = weights / weights.sum()
    channels = images.shape[1]
    kernel = weights.expand(channels, 1, 1, -1)
    images = F.conv2d(images, kernel, groups=channels)
    return F.conv2d(images, kernel.mT, groups=channels)
