"""Do clusters of features find objects? Overlap with masks, against rivals without features.

    python bench/stylegallery_clusters.py --labels photos/labels.jsonl --vgg vgg16.safetensors

No pretrained diffusion model is needed: the features are VGG16's (square roots of relu4_3 and
relu5_3 at 384 px, on one grid), clustered exactly as StyleGallery does, without its merging of
clusters, which needs a VAE's latents. Scored per object: the IoU of the best region with the mask,
and of the union of the regions that lie mostly inside. Rivals with the same number of regions:
K-means on Lab colour, on colour and position, and SLIC; and the whole image, which any partition
gets for free. Compared at the number of regions that the silhouette chooses, and at 4 and 8.
Differences are paired by object, with 95 % intervals of the bootstrap.

Layers, size and scaling of the features were chosen among ten variants on every other photo (--half
tune; 30 photos, 39 objects); the reported numbers are from the remaining ones (--half report).
The result goes to bench/results/stylegallery_clusters.json.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _shared import RESULTS, provenance
from skimage.color import rgb2lab
from skimage.segmentation import slic
from torch import Tensor
from tqdm import tqdm

from eval.encoders.vision import VggEncoder, load_vgg
from pseudo_labels.segment.given import LabelledPhoto, open_photo, read_labels
from pseudo_labels.stylegallery.clusters import (
    absorb_islands,
    cluster_features,
    relabel,
    standardise,
)
from pseudo_labels.stylegallery.config import ClusterConfig
from regionroute.data.stats import paired
from regionroute.files import write_json

GRID, SIDE = 64, 384
LAYERS = ("relu4_3", "relu5_3")
CHOSEN = "chosen"
HALVES = ("tune", "report")
COUNTS = (4, 8)  # regions, in addition to the number that the silhouette chooses


def main() -> int:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--labels", required=True, nargs="+", help="labels files with masks")
    parser.add_argument("--vgg", required=True, help="torchvision's VGG16")
    parser.add_argument("--limit", type=int, default=30, help="photos per file, evenly spread")
    parser.add_argument(
        "--half", choices=HALVES, default="report", help="which photos (default: report)"
    )
    parser.add_argument(
        "--restarts", type=int, default=10, help="restarts of K-means (default: 10)"
    )
    parser.add_argument(
        "--points", type=int, default=5000, help="points for the silhouette (default: 5000)"
    )
    parser.add_argument(
        "--sources", nargs="+", default=["hand", "human"], help="accepted sources of masks"
    )
    parser.add_argument("--result", type=Path, default=RESULTS / "stylegallery_clusters.json")
    args = parser.parse_args()
    network = load_vgg(args.vgg)
    photos = [photo for labels in args.labels for photo in chosen(labels, args)]
    scores: dict[str, list[float]] = {}
    unions: dict[str, list[float]] = {}
    counts = []
    for photo in tqdm(photos, unit="photo"):
        image, segments, *_ = open_photo(photo)
        config = ClusterConfig(restarts=args.restarts, silhouette_points=args.points)
        partitions = all_partitions(image, network, config)
        counts.append(int(partitions[f"{CHOSEN}: features"].max()))
        for segment in segments:
            mask = F.interpolate(segment.mask[None], (GRID, GRID), mode="area")[0, 0] >= 0.5
            if not mask.any():
                continue
            for name, labels in partitions.items():
                one, several = overlaps(labels, mask)
                scores.setdefault(name, []).append(one)
                unions.setdefault(name, []).append(several)
    write_json(args.result, summary(scores, unions, counts, args))
    for name, values in scores.items():
        print(f"{name:<36} best cluster {np.mean(values):.3f}, union {np.mean(unions[name]):.3f}")
    print(
        f"{len(counts)} photos, {len(scores[f'{CHOSEN}: features'])} objects; {args.result} written"
    )
    return 0


def chosen(labels: str, args: argparse.Namespace) -> list[LabelledPhoto]:
    """Select photos of a labels file whose masks come from the accepted sources."""
    photos = [
        photo
        for photo in read_labels(labels)[0]
        if photo.objects and all(item.source in args.sources for item in photo.objects)
    ]
    count = min(2 * args.limit, len(photos))
    places = np.linspace(0, len(photos) - 1, count).round().astype(int)
    return [photos[place] for place in places[HALVES.index(args.half) :: 2]]


def summary(scores: Any, unions: Any, counts: list[int], args: argparse.Namespace) -> Any:
    """Means, and paired differences to the features."""
    table = {}
    for name in scores:
        row = {"best cluster IoU": np.mean(scores[name]), "union IoU": np.mean(unions[name])}
        ours = name.split(":")[0] + ": features"
        if name != ours:
            ahead = {"features ahead by": scores, "union ahead by": unions}
            for key, values in ahead.items():
                row[key] = paired(values[ours], values[name], higher_is_better=True)
        table[name] = row
    facts = {
        "photos": len(counts),
        "objects": len(scores[f"{CHOSEN}: features"]),
        "masks by": args.sources,
        "half": args.half,
        "restarts": args.restarts,
        "silhouette's points": args.points,
    }
    facts["mean number of regions"] = float(np.mean(counts))
    return provenance(("torch", "scikit-learn", "scikit-image")) | facts | {"partitions": table}


def resized(image: Tensor, side: int) -> Tensor:
    """The image as a square [3, side, side]."""
    small = F.interpolate(image[None], (side, side), mode="bicubic", antialias=True)
    return small[0].clamp(0, 1)


def stand_in(image: Tensor, network: VggEncoder) -> Tensor:
    """Features [C, 64, 64] of an image; square roots, because most are 0 and some are large."""
    found = network(resized(image, SIDE)[None], LAYERS)
    grid = [F.interpolate(found[name], (GRID, GRID), mode="bilinear")[0] for name in LAYERS]
    return torch.cat(grid).sqrt()


def all_partitions(image: Tensor, network: VggEncoder, config: ClusterConfig) -> dict[str, Tensor]:
    """Labels [64, 64] of an image [3, H, W]: {"number of regions: method": labels}."""
    features = stand_in(image, network)
    small = resized(image, GRID).permute(1, 2, 0).numpy()
    colour = torch.from_numpy(rgb2lab(small)).permute(2, 0, 1).float()
    y, x = torch.meshgrid(torch.linspace(-1, 1, GRID), torch.linspace(-1, 1, GRID), indexing="ij")
    placed = torch.cat([colour, torch.stack([y, x])])
    chosen = relabel(absorb_islands(cluster_features(features, config), config.island))
    partitions = {f"{CHOSEN}: features": chosen, f"{CHOSEN}: whole picture": 0 * chosen + 1}
    for count in (max(2, int(chosen.max())), *COUNTS):
        name = str(count) if count in COUNTS and f"{CHOSEN}: SLIC" in partitions else CHOSEN
        partitions[f"{name}: K-means, colour"] = kmeans(standardise(colour), count, config.restarts)
        partitions[f"{name}: K-means, colour and place"] = kmeans(
            standardise(placed), count, config.restarts
        )
        segments = slic(small, count, start_label=1).astype(np.int64)
        partitions[f"{name}: SLIC"] = relabel(torch.from_numpy(segments))
        if name != CHOSEN:
            partitions[f"{name}: features"] = kmeans(reduced(features), count, config.restarts)
    return partitions


def reduced(features: Tensor) -> Tensor:
    """The principal components [60, h, w] that `cluster_features` clusters."""
    from sklearn.decomposition import PCA

    points = standardise(features).flatten(1).T.numpy()
    found = PCA(60, svd_solver="randomized", random_state=42).fit_transform(points)
    return torch.from_numpy(found.T.copy()).view(60, *features.shape[1:])


def kmeans(values: Tensor, count: int, restarts: int) -> Tensor:
    """Labels [h, w] of values [c, h, w], islands removed as in ours."""
    from sklearn.cluster import KMeans

    points = values.flatten(1).T.numpy()
    found = KMeans(count, n_init=restarts, random_state=42).fit_predict(points)
    labels = torch.from_numpy(found.astype(np.int64)).view(values.shape[1:]) + 1
    return relabel(absorb_islands(labels, 20))


def overlaps(labels: Tensor, mask: Tensor) -> tuple[float, float]:
    """IoU of a mask [h, w] with its best region, and with the union of those mostly inside."""
    best, inside = 0.0, torch.zeros_like(mask)
    for label in range(1, int(labels.max()) + 1):
        region = labels == label
        common = (region & mask).sum()
        best = max(best, float(common / (region | mask).sum()))
        if 2 * common > region.sum():
            inside |= region
    union = float((inside & mask).sum() / (inside | mask).sum())
    return best, max(best, union)


if __name__ == "__main__":
    raise SystemExit(main())
