"""Makes the patches of a painted image those of its references, region by region.

A feed-forward painter leaves the photo's own texture where a reference is smooth: the result is a
photo in other colours. Here every patch is replaced by its nearest neighbour among the patches of
the matched region, and overlapping patches are blended; repeated, this is texture optimisation
(Kwatra et al., SIGGRAPH 2005) with the painted image as the start and the data term, as in Elad and
Milanfar's "Style transfer via texture synthesis" (IEEE TIP 2017).

Shape legend: p side of a patch, n patches, H W pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_CHUNK = 2048  # patches compared at once


@dataclass(frozen=True)
class TextureConfig:
    """How patches are exchanged.

    Attributes:
        size: p in pixels.
        stride: distance of neighbouring patches in pixels.
        iterations: rounds of matching and blending.
        keep: weight of the painted image in each round, in [0, 1].
        most: patches of a region that are compared, at random.
        fewest: a region with fewer patches takes those of its whole reference.
        window: standard deviation of the blending window, in patch sizes.
    """

    size: int = 8
    stride: int = 2
    iterations: int = 2
    keep: float = 0.2
    most: int = 3000
    fewest: int = 300
    window: float = 0.25


@torch.no_grad()
def retexture(
    painted: Tensor,
    regions: Tensor,
    sources: Mapping[int, tuple[Tensor, Tensor]],
    config: TextureConfig | None = None,
) -> Tensor:
    """Exchange the patches of a painted image.

    Args:
        painted: [3, H, W] in [0, 1].
        regions: int64 [H, W]; patches of other regions than `sources` names stay.
        sources: label -> reference [3, h, w] in [0, 1], and the mask [h, w] of its matched region.
        config: how.

    Returns:
        [3, H, W] in [0, 1].
    """
    config = config or TextureConfig()
    size, stride = config.size, config.stride
    pools = {label: _pool(*source, config) for label, source in sources.items()}
    height, width = painted.shape[-2:]
    below, right = (max(size - side, -(side - size) % stride) for side in (height, width))
    start = F.pad(painted[None], (0, right, 0, below), mode="replicate")[0]
    labels = F.pad(regions[None, None].float(), (0, right, 0, below), mode="replicate")[0, 0]
    middle = size // 2
    centres = labels.unfold(0, size, stride).unfold(1, size, stride)[..., middle, middle].flatten()
    window = _window(size, config.window)
    weight = F.fold(window.expand(len(centres), -1).T[None], start.shape[-2:], size, stride=stride)[
        0
    ]
    image = start
    for _ in range(config.iterations):
        patches = _patches(image, size, stride)
        for label, pool in pools.items():
            mine = (centres == label).nonzero()[:, 0]
            patches[mine] = pool[_nearest(patches[mine], pool)]
        blended = F.fold(
            (patches * window.repeat(3)).T[None], start.shape[-2:], size, stride=stride
        )[0]
        image = (1 - config.keep) * blended / weight + config.keep * start
    return image[:, :height, :width].clamp(0, 1)


def _pool(reference: Tensor, mask: Tensor, config: TextureConfig) -> Tensor:
    """Patches [n, 3p²] of a region of a reference, or of all of it."""
    size = config.size
    inside = F.avg_pool2d(mask[None].to(reference), size, stride=1)[0] > 0.5
    if int(inside.sum()) < config.fewest:
        inside = torch.ones_like(inside)
    corners = inside.nonzero()
    if len(corners) > config.most:
        generator = torch.Generator().manual_seed(0)
        corners = corners[torch.randperm(len(corners), generator=generator)[: config.most]]
    windows = reference.unfold(1, size, 1).unfold(2, size, 1)
    return windows[:, corners[:, 0], corners[:, 1]].transpose(0, 1).flatten(1)


def _patches(image: Tensor, size: int, stride: int) -> Tensor:
    """[n, C·p²] of an image [C, H, W]."""
    return F.unfold(image[None], size, stride=stride)[0].T.contiguous()


def _nearest(queries: Tensor, pool: Tensor) -> Tensor:
    """Index of the nearest row of `pool` for each query."""
    lengths = pool.square().sum(1)
    found: Sequence[Tensor] = [
        (lengths - 2 * part @ pool.T).argmin(1) for part in queries.split(_CHUNK)
    ]
    return torch.cat([torch.zeros(0, dtype=torch.int64), *found])


def _window(size: int, spread: float) -> Tensor:
    """Weights [p²] of a patch's pixels, largest in its middle."""
    places = (torch.arange(size) - (size - 1) / 2) / size
    line = torch.exp(-0.5 * (places / spread) ** 2)
    return (line[:, None] * line[None]).flatten()
