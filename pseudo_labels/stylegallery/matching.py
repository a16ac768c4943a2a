"""Matches content regions with the most similar regions of the references (StyleGallery §3.2).

S = 0.25 cos(statistics) + 1 cos(DINOv2) + 0.125 IoU(bounding circles). A region of a reference may
be matched with several content regions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pseudo_labels.stylegallery.config import MatchConfig

_TRANSFORMER_LAYERS, _TRANSFORMER_HEADS = 8, 4  # of the published code


@dataclass(frozen=True)
class RegionSet:
    """Regions of an image with what matching needs.

    Attributes:
        mix: features [C, h, w].
        labels: int64 [h, w], 1..n.
        tokens: semantic tokens [C', g, g] of the whole image, None to match without them.
    """

    mix: Tensor
    labels: Tensor
    tokens: Tensor | None = None

    @property
    def count(self) -> int:
        """Number of regions."""
        return int(self.labels.max())


@dataclass(frozen=True)
class Match:
    """Match of a content region.

    Attributes:
        region: label of the content region.
        reference: index of the reference image, from 0.
        cluster: label of the region in it.
        statistical: similarity in [-1, 1].
        semantic: similarity in [-1, 1], None without a semantic encoder.
        geometric: similarity in [0, 1].
        score: their weighted sum.
        manual: chosen by the user.
    """

    region: int
    reference: int
    cluster: int
    statistical: float
    semantic: float | None
    geometric: float
    score: float
    manual: bool = False


class RegionMatcher:
    """Compares regions of a content image with those of references.

    Args:
        config: weights and settings of the statistics.
    """

    def __init__(self, config: MatchConfig) -> None:
        self.config = config
        self._mixer: nn.Module | None = None

    def match(
        self,
        content: RegionSet,
        references: Sequence[RegionSet],
        chosen: Mapping[int, tuple[int, int | None]] | None = None,
    ) -> list[Match]:
        """The best match of every content region.

        Args:
            content: the image to restyle.
            references: at least one.
            chosen: {region: (reference, its region or None for the best of that reference)}.

        Returns:
            One match per region, in the order of labels.

        Raises:
            ValueError: a similarity is not finite, or a choice names a region that does not exist.
        """
        tables = self.similarities(content, references)
        if not all(bool(torch.isfinite(table).all()) for table in tables.values()):
            raise ValueError("a similarity is not finite: the features hold NaN or infinity")
        owners = [(n, s) for n, ref in enumerate(references) for s in range(1, ref.count + 1)]
        matches = []
        for region in range(1, content.count + 1):
            scores = tables["score"][region - 1]
            choice = (chosen or {}).get(region)
            allowed = [i for i, owner in enumerate(owners) if _allows(choice, owner)]
            if not allowed:
                raise ValueError(f"region {region}: reference and cluster {choice} do not exist")
            best = max(allowed, key=lambda i: float(scores[i]))
            values = {name: float(table[region - 1, best]) for name, table in tables.items()}
            matches.append(
                Match(
                    region,
                    *owners[best],
                    values["statistical"],
                    values.get("semantic"),
                    values["geometric"],
                    values["score"],
                    choice is not None,
                )
            )
        return matches

    def similarities(
        self, content: RegionSet, references: Sequence[RegionSet]
    ) -> dict[str, Tensor]:
        """Tables [n, m] of n content regions against the m regions of all references, in order.

        Returns:
            "statistical", "geometric", "semantic" (where all images have tokens) and "score".
        """
        everything = [content, *references]
        statistics = [self.statistics(item) for item in everything]
        circles = [bounding_circles(item.labels) for item in everything]
        tables = {
            "statistical": _cosine(statistics[0], torch.cat(statistics[1:])),
            "geometric": circle_iou(circles[0], torch.cat(circles[1:])),
        }
        score = self.config.statistical * tables["statistical"]
        if all(item.tokens is not None for item in everything):
            meanings = [semantic_vectors(item) for item in everything]
            tables["semantic"] = _cosine(meanings[0], torch.cat(meanings[1:]))
            score = score + self.config.semantic * tables["semantic"]
        return tables | {"score": score + self.config.geometric * tables["geometric"]}

    def statistics(self, item: RegionSet) -> Tensor:
        """Mean and variance of each region's features after attention within it: [n, 2C]."""
        flat = item.mix.float().flatten(1).T
        vectors = []
        for label in range(1, item.count + 1):
            cells = (item.labels.flatten() == label).nonzero()[:, 0]
            if len(cells) > self.config.points:  # evenly spaced and deterministic
                places = torch.linspace(0, len(cells) - 1, self.config.points).round().long()
                cells = cells[places]
            mixed = self._mixed(flat[cells.to(flat.device)])
            halves = (mixed.mean(0), mixed.var(0, unbiased=False))
            vectors.append(torch.cat([F.normalize(half, dim=0) for half in halves]))
        return torch.stack(vectors)

    @torch.no_grad()
    def _mixed(self, cells: Tensor) -> Tensor:
        """Features [N, C] after self-attention."""
        if self.config.statistics == "attention":
            return F.scaled_dot_product_attention(cells[None], cells[None], cells[None])[0]
        if self._mixer is None:
            self._mixer = _random_transformer(cells.shape[1])
        mixed: Tensor = self._mixer(cells[None].cpu())[0]
        return mixed.to(cells.device)


def _allows(choice: tuple[int, int | None] | None, owner: tuple[int, int]) -> bool:
    return choice is None or (choice[0] == owner[0] and choice[1] in (None, owner[1]))


def _random_transformer(channels: int) -> nn.Module:
    """The untrained transformer of the published code, with a fixed seed.

    Raises:
        ValueError: the number of channels is no multiple of the number of heads.
    """
    if channels % _TRANSFORMER_HEADS:
        raise ValueError(f"{channels} channels are no multiple of {_TRANSFORMER_HEADS} heads")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(
            channels, _TRANSFORMER_HEADS, channels, dropout=0.0, batch_first=True
        )
        return nn.TransformerEncoder(layer, _TRANSFORMER_LAYERS, enable_nested_tensor=False).eval()


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return (F.normalize(a, dim=1) @ F.normalize(b, dim=1).T).cpu()


def semantic_vectors(item: RegionSet) -> Tensor:
    """Mean token of each region, each token weighted by its fraction inside the region: [n, C'].

    Raises:
        ValueError: the image has no tokens.
    """
    if item.tokens is None:
        raise ValueError("this image has no semantic tokens")
    hot = F.one_hot(item.labels - 1).permute(2, 0, 1).float()
    grid = (item.tokens.shape[-2], item.tokens.shape[-1])
    coverage = F.interpolate(hot[None], grid, mode="area")[0].flatten(1).to(item.tokens.device)
    return coverage @ item.tokens.float().flatten(1).T / coverage.sum(1, keepdim=True)


def bounding_circles(labels: Tensor) -> Tensor:
    """Circle around each region: the centroid, and the distance to its farthest cell.

    Args:
        labels: [h, w], 1..n.

    Returns:
        [n, 3] of (y, x, radius) in cells.
    """
    circles = []
    for label in range(1, int(labels.max()) + 1):
        cells = (labels == label).nonzero().double()
        centre = cells.mean(0)
        radius = (cells - centre).norm(dim=1).max()
        circles.append(torch.cat([centre, radius[None]]))
    return torch.stack(circles)


def circle_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of circles [n, 3] and [m, 3]: [n, m].

    Two points (radius 0) have an IoU of 1 if they are equal, otherwise 0.
    """
    a, b = a.double()[:, None], b.double()[None]
    gap = (a[..., :2] - b[..., :2]).norm(dim=-1)
    r, s = a[..., 2], b[..., 2]
    small, large = torch.minimum(r, s), torch.maximum(r, s)
    inside = gap <= large - small
    safe = gap.clamp(min=1e-12)
    cos_a = ((gap**2 + r**2 - s**2) / (2 * safe * r.clamp(min=1e-12))).clamp(-1, 1)
    cos_b = ((gap**2 + s**2 - r**2) / (2 * safe * s.clamp(min=1e-12))).clamp(-1, 1)
    kite = (-gap + r + s) * (gap + r - s) * (gap - r + s) * (gap + r + s)
    lens = r**2 * cos_a.acos() + s**2 * cos_b.acos() - 0.5 * kite.clamp(min=0).sqrt()
    common = torch.where(inside, torch.pi * small**2, torch.where(gap >= r + s, 0.0, lens))
    union = torch.pi * (r**2 + s**2) - common
    points = (large == 0) & (gap == 0)
    return torch.where(points, 1.0, common / union.clamp(min=1e-12)).float()
