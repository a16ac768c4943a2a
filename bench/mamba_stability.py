"""Does a fit of StyleMamba at its defaults stay finite? The sizes inside the scan, step by step.

    python bench/mamba_stability.py --assets ../shared/assets

The rival is the module without `fusion.normalize` at one learning rate for all layers, as it was
before. The result goes to bench/results/mamba_stability.json: at each step the loss, and over all
scans the largest step size, input weight, output weight and output.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from _shared import add_result_argument, provenance

from pseudo_labels.stylemamba import fitting
from pseudo_labels.stylemamba.config import ImageStyleConfig
from pseudo_labels.stylemamba.modules import fusion
from pseudo_labels.stylemamba.networks import PATCH, Names, load_parts, read_images
from regionroute.errors import UserError
from regionroute.files import write_json

ARMS = {"ours": True, "without normalisation": False}
SEEN = ("step size", "input weight", "output weight", "output")


def main() -> int:
    """Fit one photo to one style image in both arms."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--assets", type=Path, required=True, help="folder with photos, style images and weights")
    add("--photo", default="cat_01.jpg")
    add("--style", default="AcamenicArt.jpg")
    add("--size", type=int, default=64, help="side of the photo in pixels (default: 64)")
    add("--steps", type=int, default=14)
    add_result_argument(parser, "mamba_stability")
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs = {arm: run(args, normalize) for arm, normalize in ARMS.items()}
    result = provenance() | {
        "settings": {k: str(v) for k, v in vars(args).items() if k != "result"},
        "runs": runs,
    }
    write_json(args.result, result)
    for arm, rows in runs.items():
        print(arm, rows[-1])
    return 0


def run(args: argparse.Namespace, normalize: bool) -> list[dict[str, Any]]:
    """The rows of a fit, as far as it came."""
    config = ImageStyleConfig.model_validate(
        {
            "fusion": {"normalize": normalize},
            "fit": {"size": args.size, "steps": args.steps, "tolerance": 0},
            "loss": {"masks": 1},
        }
    )
    images = read_images([args.assets / "photos" / args.photo], args.size)
    vgg = args.assets / "weights" / "lpips" / "vgg16_features.safetensors"
    parts = load_parts(Names(vae=PATCH, vgg=str(vgg)), images, True, torch.device("cpu"))
    target = parts.encoder.target(str(args.assets / "style_images" / args.style))
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
