r"""Real photos on the embedded base: is the named object restyled, and is the rest left alone?

    regionroute label --labels PHOTOS/labels.jsonl --styles small_photos --styles-per-photo 3 \
        --size 160 --split-val 0.1 --out data/photo_pairs
    python bench/photos.py --manifest data/photo_pairs --weights alexnet_features.safetensors \
        flow.perceptual.vgg=vgg16_features.safetensors

Arms, trained at equal steps, each seed with its own experts and order: with Focus and Cover, and
without. Held out by photo: the split "test", which the base has not seen either. Edits at the
model's own size, routed by the map, plain as in the paper, and routed by the true mask.
Measures: leak (visibly changed pixels outside the mask dilated by 3 % of the shorter side),
coverage (visibly changed pixels inside it), LPIPS of the background before any lock, LPIPS to the
target inside the mask over that of the unedited photo, IoU of the region map with the mask. The
result goes to bench/results/photos.json, a sheet of pictures beside the runs.
"""

import argparse
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from _shared import add_result_argument, provenance, run_python
from torch import Tensor
from tqdm import tqdm

from eval.encoders.features import PerceptualDistance, find_lpips_weights, load_lpips
from eval.metrics.lpips import lpips_bg
from eval.metrics.region import coverage, leak
from regionroute.data.images import read_image, read_mask, resize, write_image
from regionroute.data.manifest import read_manifest
from regionroute.data.region_scores import in_mask_ratio, masked_mean
from regionroute.data.stats import describe, paired
from regionroute.editing.editor import Editor, load_editor
from regionroute.editing.request import EditOptions, EditRequest, Mode
from regionroute.files import write_json

ROOT = Path(__file__).resolve().parents[1]
ARMS = {"with": (), "without": ("supervision.focus=0", "supervision.cover=0")}
TRUE_MASK = "routed by the true mask"  # how well it paints, whatever it finds
METHODS: dict[str, tuple[str, Mode]] = {  # name -> arm of the experts, how
    "routed, with": ("with", "routed"),
    "routed, without": ("without", "routed"),
    "plain, with": ("with", "plain"),
    "plain, without": ("without", "plain"),
    TRUE_MASK: ("with", "routed"),
}
REFERENCE = "routed, with"
MEASURES = ("leak", "coverage", "lpips_bg", "lpips_ratio", "in_mask_ratio", "map_iou")
HIGHER = {"coverage", "map_iou", "pixel_iou"}
LEAST_OF_A_WORD = 9  # edits, for a line of its own
MARGIN = 0.03  # of the shorter side, round the mask


class Case(NamedTuple):
    """A held-out pair at the model's size: pictures [3,H,W], mask [1,H,W], and its words."""

    photo: str
    image: Tensor
    target: Tensor
    mask: Tensor
    word: str
    style: str
    flags: tuple[str, ...]


def main() -> int:
    """Trains what is not there yet, edits, and writes the comparison."""
    args = _parser().parse_args()
    distance = load_lpips(lpips_weights(args.weights), "cpu")
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in METHODS}
    for seed in args.seeds:
        for arm, changes in ARMS.items():
            _train(args, seed, arm, changes)
        for name, (arm, mode) in METHODS.items():
            editor = load_editor(args.base, args.out / f"seed-{seed}" / arm / "experts")
            cases = held_out(args.manifest, editor, args.pairs)
            given = name == TRUE_MASK
            scored, pictures = score(editor, cases, mode, distance, f"{name}, seed {seed}", given)
            rows[name] += scored
            sheet = args.out / f"seed-{seed}" / f"{name.replace(', ', '-')}.png"
            write_image(sheet, grid(cases, pictures))
    result = provenance() | {
        "base": args.base,
        "steps": args.steps,
        "seeds": args.seeds,
        "pairs": len(rows[REFERENCE]),
        "methods": {name: summary(scored) for name, scored in rows.items()},
        f"{REFERENCE}, minus": {
            name: difference(rows[REFERENCE], scored)
            for name, scored in rows.items()
            if name != REFERENCE
        },
    }
    write_json(args.result, result)
    show(result)
    return 0


def held_out(manifest: Path, editor: Editor, count: int) -> list[Case]:
    """Pairs of the split "test" in known styles, photos taking turns in a fixed random order."""
    read = read_manifest(manifest)
    by_photo: dict[str, list[Any]] = {}
    assert editor.registry is not None
    known = {entry.style for entry in editor.registry.experts}
    for sample in read.samples:
        if sample.split != "test" or len(sample.regions) != 1:
            continue
        if sample.regions[0].style in known:
            by_photo.setdefault(sample.context, []).append(sample)
    photos = list(by_photo.values())
    random.Random(0).shuffle(photos)  # a manifest is sorted: its first photos are of one source
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
                tuple(sample.flags),
            )
        )
    return cases


def score(
    editor: Editor,
    cases: list[Case],
    mode: Mode,
    distance: PerceptualDistance,
    label: str,
    given: bool = False,
) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """Measures of every case, and the edited pictures as a user gets them.

    `given`: the true mask stands in the place of the map.
    """
    rows, pictures = [], []
    for case in tqdm(cases, desc=label, unit="edit"):
        regions = (case.mask[0],) if given else ()
        request = EditRequest(case.word, case.style, regions=regions)
        options = EditOptions(mode=mode, lock_background=False)
        [bare] = editor.edit_batch([case.image], [request], options, want_map=True)
        locked = bare
        if mode == "routed":
            [locked] = editor.edit_batch([case.image], [request], EditOptions(mode=mode))
        pictures.append(locked.image)
        rows.append(measures(case, bare.image, locked.image, bare.region_map, distance))
    return rows, pictures


def measures(
    case: Case,
    bare: Tensor,
    locked: Tensor,
    region_map: Tensor | None,
    distance: PerceptualDistance,
) -> dict[str, Any]:
    """One edit's; `bare` is it before the background is locked, `locked` after."""
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
        "map_iou": float((grid & found).sum() / (grid | found).sum().clamp(min=1)),
        **inside_and_outside(case, locked, distance),
    }


def inside_and_outside(
    case: Case, picture: Tensor, distance: PerceptualDistance
) -> dict[str, float]:
    """What an edit [3,H,W] does to its object and to the rest."""
    mask, image, target, edited = (x[None] for x in (case.mask, case.image, case.target, picture))
    radius = max(1, round(MARGIN * min(mask.shape[-2:])))
    wide = F.max_pool2d(mask, 2 * radius + 1, stride=1, padding=radius)
    left, unedited = (masked_mean(distance.spatial_map(x, target), mask) for x in (edited, image))
    return {
        "lpips_ratio": float(left / unedited),
        "leak": float(leak(edited, image, wide)),
        "coverage": float(coverage(edited, image, mask)),
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means with intervals, over all, by the object's size and company, and by its word."""
    names = [name for name, value in rows[0].items() if isinstance(value, float)]
    words = Counter(row["word"] for row in rows)
    groups = {
        "all": rows,
        "small": [row for row in rows if row["area"] < 0.1],
        "large": [row for row in rows if row["area"] >= 0.3],
        "touching another": [row for row in rows if "touching" in row["flags"]],
        "several of a kind": [row for row in rows if "several" in row["flags"]],
    } | {
        f"word: {word}": [row for row in rows if row["word"] == word]
        for word, count in sorted(words.items())
        if count >= LEAST_OF_A_WORD
    }
    return {
        group: {name: describe([row[name] for row in some]) for name in names} | {"n": len(some)}
        for group, some in groups.items()
        if some
    }


def difference(
    rows: list[dict[str, Any]], rivals: list[dict[str, Any]], names: Sequence[str] = MEASURES
) -> dict[str, Any]:
    """Paired over the same edits of the same seeds."""
    return {
        name: paired(
            [row[name] for row in rows],
            [row[name] for row in rivals],
            higher_is_better=name in HIGHER,
        )
        for name in names
    }


def show(result: dict[str, Any]) -> None:
    """The means as a table."""
    print("  ".join(["".ljust(18), *MEASURES]))
    for method, groups in result["methods"].items():
        values = (f"{groups['all'][name].mean:.3f}".rjust(len(name)) for name in MEASURES)
        print("  ".join([method.ljust(18), *values]))


def grid(cases: list[Case], pictures: Iterable[Tensor], columns: int = 10) -> Tensor:
    """Photo over edit over target, the first thirty cases, as one picture [3,H,W]."""
    side = 128
    cells = [
        torch.cat([resize(p[None], (side, side))[0] for p in (c.image, edited, c.target)], 1)
        for c, edited in zip(cases[:30], pictures, strict=False)
    ]
    cells += [torch.ones_like(cells[0])] * (-len(cells) % columns)
    rows = [torch.cat(cells[i : i + columns], 2) for i in range(0, len(cells), columns)]
    return torch.cat(rows, 1).clamp(0, 1)


def _train(args: argparse.Namespace, seed: int, arm: str, changes: tuple[str, ...]) -> None:
    folder = args.out / f"seed-{seed}"
    if (folder / arm / "experts" / "experts.json").exists():
        return
    run_python(ROOT / "train/run.py", "--config", ROOT / "configs/nano_photos.yaml",
               f"base.name={args.base}", f"data.manifest={args.manifest}",
               f"data.cache={args.out / 'cache'}", f"output={folder / arm}", f"seed={seed}",
               f"train.steps={args.steps}", *args.overrides, *changes)  # fmt: skip


def lpips_weights(given: str | None) -> Path:
    """AlexNet's file, the given one or where it usually lies; ends with a sentence if none is."""
    path = find_lpips_weights(given)
    if path is None:
        raise SystemExit("--weights: LPIPS needs torchvision's AlexNet, name its file")
    return Path(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE settings of both arms")
    parser.add_argument("--manifest", type=Path, required=True, help="photo pairs")
    parser.add_argument("--weights", help="AlexNet's weights, for LPIPS")
    parser.add_argument("--base", default="nano-photos")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=150, help="training steps")
    parser.add_argument("--pairs", type=int, default=150, help="held-out pairs edited")
    parser.add_argument("--out", type=Path, default=Path("out/photos"), help="folder of the runs")
    add_result_argument(parser, "photos")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
