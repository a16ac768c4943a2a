"""Held-out pairs of photos to edit, and how well edits of them do."""

import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from eval.encoders.features import PerceptualDistance, find_lpips_weights
from eval.metrics.lpips import lpips_bg
from eval.metrics.region import coverage, leak, success
from regionroute.data.images import read_image, read_mask, resize
from regionroute.data.manifest import load_manifest
from regionroute.data.region_scores import in_mask_ratio, masked_mean
from regionroute.data.stats import paired
from regionroute.editing.editor import Editor

MARGIN = 0.03  # of the shorter side, around the mask
MEASURES = ("leak", "coverage", "lpips_bg", "lpips_ratio", "in_mask_ratio", "success", "map_iou")
HIGHER = {"coverage", "map_iou", "pixel_iou", "success"}


class Case(NamedTuple):
    """A test pair at the model's size: images [3,H,W], mask [1,H,W], and its words."""

    photo: str
    image: Tensor
    target: Tensor
    mask: Tensor
    word: str
    style: str
    style_words: str  # what a prompt calls the style
    flags: tuple[str, ...]


def held_out(manifest: Path, editor: Editor, count: int) -> list[Case]:
    """Pairs of the split "test" in known styles, round-robin over the shuffled photos."""
    read = load_manifest(manifest)
    by_photo: dict[str, list[Any]] = {}
    assert editor.registry is not None
    known = {entry.style for entry in editor.registry.experts}
    for sample in read.samples:
        if sample.split != "test" or len(sample.regions) != 1:
            continue
        if sample.regions[0].style in known:
            by_photo.setdefault(sample.context, []).append(sample)
    photos = list(by_photo.values())
    random.Random(0).shuffle(photos)  # manifests are sorted: the first photos share a source
    turns = max(map(len, photos))
    chosen = [samples[turn] for turn in range(turns) for samples in photos if turn < len(samples)]
    cases = []
    for sample in chosen[:count]:
        image = read_image(read.path(sample.context))
        size = editor.backbone.fit_size(image.shape[-2], image.shape[-1])
        target = read_image(read.path(sample.target))
        mask = F.interpolate(read_mask(read.path(sample.regions[0].mask))[None], size, mode="area")
        region = sample.regions[0]
        cases.append(
            Case(
                sample.context,
                resize(image[None], size)[0].clamp(0, 1),
                resize(target[None], size)[0].clamp(0, 1),
                (mask[0] >= 0.5).float(),
                region.object,
                region.style,
                editor.styles.resolve(region.style).words,
                tuple(sample.flags),
            )
        )
    return cases


def measures(
    case: Case,
    bare: Tensor,
    locked: Tensor,
    region_map: Tensor | None,
    distance: PerceptualDistance,
) -> dict[str, Any]:
    """Metrics of one edit: `bare` before the background is locked, `locked` after."""
    assert region_map is not None
    mask, image, target = case.mask[None], case.image[None], case.target[None]
    grid = F.interpolate(mask, region_map.shape[-2:], mode="area")[0, 0] >= 0.5
    found = region_map > 0.5
    return {
        "photo": case.photo,
        "word": case.word,
        "style": case.style,
        "flags": case.flags,
        "area": float(case.mask.mean()),
        "lpips_bg": float(lpips_bg(bare[None], image, mask, distance)),
        "in_mask_ratio": float(in_mask_ratio(locked[None], image, target, mask)),
        "success": float(success(locked[None], image, target, mask)),
        "map_iou": float((grid & found).sum() / (grid | found).sum().clamp(min=1)),
        **inside_and_outside(case, locked, distance),
    }


def inside_and_outside(case: Case, edit: Tensor, distance: PerceptualDistance) -> dict[str, float]:
    """What an edit [3,H,W] does to its object and to the rest of the image."""
    mask, image, target, edited = (x[None] for x in (case.mask, case.image, case.target, edit))
    radius = max(1, round(MARGIN * min(mask.shape[-2:])))
    wide = F.max_pool2d(mask, 2 * radius + 1, stride=1, padding=radius)
    left, unedited = (masked_mean(distance.spatial_map(x, target), mask) for x in (edited, image))
    return {
        "lpips_ratio": float(left / unedited),
        "leak": float(leak(edited, image, wide)),
        "coverage": float(coverage(edited, image, mask)),
    }


def grid(cases: list[Case], images: Iterable[Tensor]) -> Tensor:
    """Photo above edit above target, the first thirty cases, as one image [3,H,W]."""
    side, columns = 128, 10
    cells = [
        torch.cat([resize(p[None], (side, side))[0] for p in (c.image, edited, c.target)], 1)
        for c, edited in zip(cases[:30], images, strict=False)
    ]
    cells += [torch.ones_like(cells[0])] * (-len(cells) % columns)
    rows = [torch.cat(cells[i : i + columns], 2) for i in range(0, len(cells), columns)]
    return torch.cat(rows, 1).clamp(0, 1)


def difference(
    rows: list[dict[str, Any]], rivals: list[dict[str, Any]], names: Sequence[str] = MEASURES
) -> dict[str, Any]:
    """Differences, paired over the same edits of the same seeds."""
    return {
        name: paired(
            [row[name] for row in rows],
            [row[name] for row in rivals],
            higher_is_better=name in HIGHER,
        )
        for name in names
    }


def lpips_weights(given: str | None) -> Path:
    """AlexNet's weights: the given file or the usual place; exit if there are none."""
    path = find_lpips_weights(given)
    if path is None:
        raise SystemExit("--weights: LPIPS needs torchvision's AlexNet weights; give the file")
    return Path(path)
