"""Do fits of StyleMamba at their defaults stay finite?

    python bench/mamba_stability.py --assets ../shared/assets

Parts, each replaced alone in bench/results/mamba_stability.json:

growth  The sizes inside the scan: at each step the loss, and over all scans the largest step size,
        input weight, output weight and output. The rival is the module without `fusion.normalize`
        at one learning rate for all layers, as it was before.
fits    Every shared style image, on ten photos (every fourth by name) in turn, at 64 px, then
        four again at 192, 256, 384 and 512 px. A fit ends when it has converged,
        or after `--seconds` of processor time, but not before `--least` steps. It diverges if its
        loss is not finite, or if the mean of its last five style losses is not below the first.
        Fits in the result are kept, so `--fits 1 --seconds 1000` and then `--seconds 45` gives the
        first one more time.
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from _shared import add_result_argument, provenance

from pseudo_labels.stylemamba import fitting
from pseudo_labels.stylemamba.config import ImageStyleConfig
from pseudo_labels.stylemamba.modules import fusion
from pseudo_labels.stylemamba.networks import PATCH, Names, load_parts, read_images
from regionroute.errors import UserError
from regionroute.files import read_json, write_json

ARMS = {"ours": True, "without normalisation": False}
PARTS = ("growth", "fits")
SIZES = (*(64,) * 12, 192, 256, 384, 512)  # of the fits; style images and photos in turn
PHOTOS = slice(0, 40, 4)
SEEN = ("step size", "input weight", "output weight", "output")


class TimeIsUp(Exception):
    """A fit has used its time."""


def main() -> int:
    """Measure the parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--assets", type=Path, required=True, help="folder with photos, style images and weights")
    add("--parts", nargs="+", choices=PARTS, default=PARTS)
    add("--photo", default="cat_01.jpg", help="of the growth")
    add("--style", default="AcamenicArt.jpg", help="of the growth")
    add("--size", type=int, default=64, help="side of its photo in pixels (default: 64)")
    add("--steps", type=int, default=14, help="of the growth (default: 14)")
    add("--seconds", type=float, default=150, help="processor time of a fit (default: 150)")
    add("--least", type=int, default=8, help="smallest number of steps of a fit (default: 8)")
    add("--masks", type=int, default=4, help="random masks per step of a fit (default: 4)")
    add("--fits", type=int, default=len(SIZES), help="number of fits (default: all)")
    add_result_argument(parser, "mamba_stability")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if "growth" in args.parts:
        settings = {key: str(getattr(args, key)) for key in ("photo", "style", "size", "steps")}
        runs = {arm: growth(args, normalize) for arm, normalize in ARMS.items()}
        keep(args, "growth", {"settings": settings, "runs": runs})
    if "fits" in args.parts:
        fits(args)
    return 0


def keep(args: argparse.Namespace, part: str, found: dict[str, Any]) -> None:
    """Replace a part of the result."""
    result = read_json(args.result) if args.result.is_file() else {}
    write_json(args.result, result | {part: provenance() | found})


def fits(args: argparse.Namespace) -> None:
    """Fit each style image to a photo; those in the result are kept."""
    styles = sorted((args.assets / "style_images").glob("*.jpg"))
    photos = sorted((args.assets / "photos").glob("*.jpg"))[PHOTOS]
    known = read_json(args.result).get("fits", {}) if args.result.is_file() else {}
    rows = known.get("rows", [])
    for number in range(len(rows), args.fits):
        photo, style = photos[number % len(photos)], styles[number % len(styles)]
        rows.append(fit_one(args, photo, style, SIZES[number]))
        print(rows[-1], flush=True)
        count = sum(row["diverged"] for row in rows)
        keep(args, "fits", {"diverged": count, "rows": rows})


def fit_one(args: argparse.Namespace, photo: Path, style: Path, size: int) -> dict[str, Any]:
    """Fit a style image to a photo at the defaults."""
    config = ImageStyleConfig.model_validate({"fit": {"size": size}, "loss": {"masks": args.masks}})
    images, parts, target = prepared(args, photo, style, size)
    losses: list[float] = []
    styles: list[float] = []
    outputs: list[float] = []
    error, ended, started = None, "steps", time.process_time()
    with watched() as largest:

        def report(step: int, row: dict[str, float]) -> None:
            losses.append(row["total"])
            styles.append(fitting.style_loss(row, config.loss))
            outputs.append(largest["output"])
            largest.clear()
            if step >= args.least and time.process_time() - started > args.seconds:
                raise TimeIsUp

        try:
            fitting.fit([target], images, parts, config, report=report)
            ended = "converged" if len(losses) < config.fit.steps else "steps"
        except TimeIsUp:
            ended = "time"
        except UserError as failure:
            error, ended = str(failure), "error"
    return {
        "style": style.stem,
        "photo": photo.stem,
        "size": size,
        "steps": len(losses),
        "masks": args.masks,
        "least": args.least,
        "limit": args.seconds,
        "ended": ended,
        "error": error,
        "diverged": error is not None or fmean(styles[-5:]) >= styles[0],
        "seconds": time.process_time() - started,
        "losses": losses,
        "style losses": styles,
        "largest output of a scan": outputs,
    }


def prepared(args: argparse.Namespace, photo: Path, style: Path, size: int) -> tuple[Any, ...]:
    """Image [1, 3, size, size], networks and style of a fit."""
    images = read_images([photo], size)
    vgg = args.assets / "weights" / "lpips" / "vgg16_features.safetensors"
    parts = load_parts(Names(vae=PATCH, vgg=str(vgg)), images, True, torch.device("cpu"))
    return images, parts, parts.encoder.target(str(style))


def growth(args: argparse.Namespace, normalize: bool) -> list[dict[str, Any]]:
    """The rows of a fit, as far as it came."""
    config = ImageStyleConfig.model_validate(
        {
            "fusion": {"normalize": normalize},
            "fit": {"size": args.size, "steps": args.steps, "tolerance": 0},
            "loss": {"masks": 1},
        }
    )
    photo, style = args.assets / "photos" / args.photo, args.assets / "style_images" / args.style
    images, parts, target = prepared(args, photo, style, args.size)
    rows: list[dict[str, Any]] = []
    with watched() as largest:

        def report(step: int, losses: dict[str, float]) -> None:
            rows.append({"step": step, "loss": losses["total"], **largest})
            largest.clear()

        inputs = fitting._INPUTS
        try:
            fitting._INPUTS = inputs if normalize else 10**9
            fitting.fit([target], images, parts, config, report=report)
        except UserError as error:
            rows.append({"error": str(error)})
        finally:
            fitting._INPUTS = inputs
    return rows


@contextmanager
def watched() -> Iterator[dict[str, float]]:
    """The largest entries of the scans' tensors since they were cleared, by name."""
    plain, largest = fusion.selective_scan, dict[str, float]()

    def scan(x: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, **options: Any) -> Any:
        y = plain(x, delta, A, B, C, D, **options)
        for name, tensor in zip(SEEN, (delta, B, C, y), strict=True):
            largest[name] = max(largest.get(name, 0.0), float(tensor.detach().abs().max()))
        return y

    fusion.selective_scan = scan
    try:
        yield largest
    finally:
        fusion.selective_scan = plain


if __name__ == "__main__":
    raise SystemExit(main())
