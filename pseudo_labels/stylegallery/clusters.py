"""Regions of an image: clusters of features, merged by latents, split by depth, without islands.

Labels are int64 [h, w] from 1. After every step they are renumbered in the order in which regions
first appear, row by row, so that equal regions have equal numbers.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pseudo_labels.stylegallery.config import ClusterConfig
from regionroute.errors import UserError

SMALLEST_SPLIT = 20  # cells a cluster needs to be split by depth
_ITERATIONS, _TOLERANCE = 64, 1e-4


def find_regions(
    mix: Tensor,
    latent: Tensor,
    config: ClusterConfig,
    *,
    seed: int = 42,
    depth: Tensor | None = None,
    masks: Tensor | None = None,
    user: Tensor | None = None,
) -> Tensor:
    """Find the regions of an image: all steps in order.

    Args:
        mix: features [C, h, w].
        latent: clean latents [c, h, w].
        config: thresholds.
        seed: seed of PCA, K-means and the sample of the silhouette.
        depth: [h, w] in [0, 1], None for no splits.
        masks: [n, H, W] in {0, 1} from Segment Anything, in place of clusters of features.
        user: int64 [h, w]; its nonzero labels become regions of their own.

    Returns:
        Labels [h, w] from 1.
    """
    # Distances grow with the number of channels; the thresholds are for four.
    latent = latent * (4 / len(latent)) ** 0.5
    if masks is None:
        labels = cluster_features(mix, config, seed)
        labels = merge_alike(labels, latent, config.merge, config.linkage)
        if depth is not None:
            labels = split_by_depth(labels, depth, config.depth_span)
            labels = merge_alike(
                labels, latent, config.depth_merge, config.linkage, depth, config.depth_gap
            )
    else:
        labels = paint_masks(masks, (latent.shape[-2], latent.shape[-1]))
        labels = merge_alike(labels, latent, config.sam_merge, config.linkage)
    if user is not None:
        labels = override(labels, user)
    labels = absorb_islands(labels, config.island, fixed=None if user is None else user > 0)
    return relabel(labels)


def _sklearn() -> tuple[Any, Any, Any, Any]:
    try:
        from sklearn.cluster import KMeans
        from sklearn.decomposition import PCA
        from sklearn.metrics import silhouette_score
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise UserError(
            "clusters of features need scikit-learn: pip install 'regionroute[gallery]'"
        ) from error
    return KMeans, PCA, silhouette_score, threadpool_limits


def cluster_features(mix: Tensor, config: ClusterConfig, seed: int = 42) -> Tensor:
    """K-means of standardised, reduced features; k is the one with the best silhouette.

    Args:
        mix: features [C, h, w].
        config: `most`, `components`, `restarts`, `silhouette_points`.
        seed: equal seeds give equal labels.

    Returns:
        Labels [h, w] from 1: at least two regions, or one if all features are equal.
    """
    kmeans, pca, silhouette, limits = _sklearn()
    height, width = mix.shape[-2:]
    points = standardise(mix).flatten(1).T.double().cpu().numpy()
    most = min(config.most, len(np.unique(points, axis=0)), len(points) - 1)
    if most < 2:
        return torch.ones(height, width, dtype=torch.int64)
    wanted = min(config.components, *points.shape)
    best: tuple[float, np.ndarray] | None = None
    with limits(1):  # the order of sums depends on the number of threads
        reducer = pca(wanted, svd_solver="randomized", random_state=seed)
        points = reducer.fit_transform(points).astype(np.float32)
        chosen = np.random.default_rng(seed).permutation(len(points))[: config.silhouette_points]
        distances = _distances(points[chosen])
        for count in range(2, most + 1):
            found = kmeans(
                count,
                n_init=config.restarts,
                max_iter=_ITERATIONS,
                tol=_TOLERANCE,
                random_state=seed,
            ).fit_predict(points)
            if not 1 < len(set(found[chosen].tolist())) < len(chosen):
                continue
            score = silhouette(distances, found[chosen], metric="precomputed")
            if best is None or score > best[0]:
                best = (score, found)
    if best is None:
        return torch.ones(height, width, dtype=torch.int64)
    return relabel(torch.from_numpy(best[1].astype(np.int64)).view(height, width) + 1)


def _distances(points: np.ndarray) -> np.ndarray:
    """Euclidean distances [n, n] of points [n, d], shared by all numbers of clusters."""
    tensor = torch.from_numpy(points).double()
    found: np.ndarray = torch.cdist(tensor, tensor).fill_diagonal_(0).numpy()
    return found


def standardise(mix: Tensor) -> Tensor:
    """Features [C, h, w] with mean 0 and variance 1 in each channel; constant ones become 0."""
    flat = mix.float().flatten(1)
    deviation = flat.std(1, unbiased=False, keepdim=True)
    return ((flat - flat.mean(1, keepdim=True)) / (deviation + 1e-6)).view(mix.shape)


def relabel(labels: Tensor) -> Tensor:
    """The same regions, numbered from 1 in the order of their first cell."""
    values, places = torch.unique(labels, return_inverse=True)
    flat = places.flatten()
    cells = torch.arange(len(flat))
    first = torch.full((len(values),), len(flat)).scatter_reduce(0, flat, cells, "amin")
    rank = torch.empty_like(first)
    rank[first.argsort()] = torch.arange(1, len(values) + 1)
    return rank[places]


def region_means(labels: Tensor, values: Tensor) -> Tensor:
    """Mean of values [c, h, w] in each region of labels 1..n: [n, c]."""
    hot = F.one_hot(labels.flatten() - 1).to(values.dtype)
    return (hot.T @ values.flatten(1).T) / hot.sum(0)[:, None]


def merge_alike(
    labels: Tensor,
    latent: Tensor,
    threshold: float,
    linkage: str = "single",
    depth: Tensor | None = None,
    gap: float = 0.0,
) -> Tensor:
    """Merge regions with similar mean latents (and similar depths, if given).

    Args:
        labels: [h, w].
        latent: [c, h, w].
        threshold: pairs at a smaller Euclidean distance are merged.
        linkage: "single" merges along chains; "complete" merges groups only if all pairs are near.
        depth: [h, w], or None.
        gap: with depth, pairs whose mean depths differ by this or more are not merged.

    Returns:
        Labels [h, w], renumbered.
    """
    labels = relabel(labels)
    means = region_means(labels, latent.double().cpu())
    near = torch.cdist(means, means) < threshold
    distance = torch.cdist(means, means)
    if depth is not None:
        depths = region_means(labels, depth.double().cpu()[None])
        near &= (depths - depths.T).abs() < gap
    join = _single if linkage == "single" else _complete
    return relabel(join(near, distance)[labels - 1])


def _single(near: Tensor, distance: Tensor) -> Tensor:
    """The group of each of n regions, by union-find."""
    parent = list(range(len(near)))

    def root(place: int) -> int:
        while parent[place] != place:
            place = parent[place]
        return place

    for a, b in near.triu(1).nonzero().tolist():
        parent[root(b)] = root(a)
    return torch.tensor([root(place) + 1 for place in range(len(near))])


def _complete(near: Tensor, distance: Tensor) -> Tensor:
    """The group of each of n regions: merge the nearest groups while all their pairs are near."""
    groups = [[place] for place in range(len(near))]
    while True:
        pairs = [
            (float(distance[a][:, b].max()), i, j)
            for i, a in enumerate(groups)
            for j, b in enumerate(groups)
            if i < j and bool(near[a][:, b].all())
        ]
        if not pairs:
            break
        _, i, j = min(pairs)
        groups[i] += groups.pop(j)
    found = torch.empty(len(near), dtype=torch.int64)
    for number, group in enumerate(groups, start=1):
        found[group] = number
    return found


def split_by_depth(labels: Tensor, depth: Tensor, span: float) -> Tensor:
    """Split regions that reach from near to far, by 2-means of their depths.

    Args:
        labels: [h, w].
        depth: [h, w] in [0, 1].
        span: minimum distance between the 5 % and 95 % quantiles of a region that is split.

    Returns:
        Labels [h, w], renumbered.
    """
    labels = relabel(labels)
    found, depth = labels.clone(), depth.double().cpu()
    for label in range(1, int(labels.max()) + 1):
        inside = labels == label
        values = depth[inside]
        low, high = values.quantile(0.05), values.quantile(0.95)
        if len(values) < SMALLEST_SPLIT or high - low < span:
            continue
        found[inside & (depth > two_means(values))] = int(found.max()) + 1
    return relabel(found)


def two_means(values: Tensor) -> float:
    """The threshold of the exact 1-D 2-means of at least two different values."""
    ordered = values.sort().values
    sums, squares = ordered.cumsum(0), ordered.square().cumsum(0)
    count = torch.arange(1, len(ordered), dtype=ordered.dtype)
    left = squares[:-1] - sums[:-1].square() / count
    rest = sums[-1] - sums[:-1]
    right = squares[-1] - squares[:-1] - rest.square() / (len(ordered) - count)
    place = int((left + right).argmin())
    return float((ordered[place] + ordered[place + 1]) / 2)


def override(labels: Tensor, user: Tensor) -> Tensor:
    """Labels in which the nonzero labels of the user are regions of their own."""
    return torch.where(user > 0, user + labels.max(), labels)


def absorb_islands(labels: Tensor, smallest: int, fixed: Tensor | None = None) -> Tensor:
    """Assign small connected parts to the most frequent region among their 4-neighbours.

    One part at a time, the smallest first.

    Args:
        labels: [h, w].
        smallest: parts with fewer cells are absorbed.
        fixed: bool [h, w], cells that keep their label and are no part of an island.

    Returns:
        Labels [h, w].
    """
    from scipy import ndimage

    found = labels.clone().numpy()
    keep = np.zeros(found.shape, bool) if fixed is None else fixed.numpy()
    while True:
        islands = []
        for label in np.unique(found):
            parts, count = ndimage.label((found == label) & ~keep)
            sizes = np.bincount(parts.ravel())
            islands += [(sizes[n], parts == n) for n in range(1, count + 1) if sizes[n] < smallest]
        for _, part in sorted(islands, key=lambda island: int(island[0])):
            around = found[ndimage.binary_dilation(part) & ~part & ~keep]
            if around.size:  # a part that fills the image has no neighbours
                values, votes = np.unique(around, return_counts=True)
                found[part] = values[votes.argmax()]
                break
        else:
            return torch.from_numpy(found)


def paint_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels from masks that may overlap, larger masks first; uncovered cells form another region.

    Args:
        masks: [n, H, W] in {0, 1}.
        size: (h, w) of the labels.

    Returns:
        Labels [h, w] from 1.
    """
    painted = torch.zeros(size, dtype=torch.int64)
    small = F.interpolate(masks[None].float(), size, mode="nearest")[0].cpu() > 0.5
    for number, place in enumerate(masks.flatten(1).sum(1).argsort(descending=True).tolist(), 2):
        painted[small[place]] = number
    return relabel(painted)


def to_grid(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask [1, H, W] as user labels: int64 [h, w], 1 where at least half of a cell is inside.

    A mask that is too thin keeps the cells it covers most.
    """
    share = F.interpolate(mask[None].float(), size, mode="area")[0, 0]
    return (share >= min(0.5, float(share.max()))).long() * int(bool(mask.any()))
