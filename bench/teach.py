"""What does `regionroute teach` make of styles that nobody tuned it for?

    python bench/teach.py --styles STYLES/Sketch.jpg STYLES/Cubism.jpg --photos PHOTOS \
        --held-out OTHERS --weights alexnet_features.safetensors

Each style image is taught on its own to the default base, as a user would, and scored on photos
that `teach` never sees: routed by the map and by the true mask, see bench/photos.py. Both folders
have a labels.jsonl with words and masks. The sheet shows photos of scikit-image: a row for each
style, the photos first. A style that has been taught in --out is not taught again. Results go to
bench/results/teach.json.
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
from _shared import add_result_argument, provenance, run_python
from figure import square
from PIL import Image

from regionroute import RegionRoutePipeline
from regionroute.files import read_json, write_json

CASES = (("chelsea", "cat"), ("coffee", "cup"), ("astronaut", "woman"), ("rocket", "rocket"))
# The photos were chosen by hand, and so was the style.
KEEP_ALL = ("--max-area", "0.9", "--max-border", "1", "--min-structure", "-1")
ROWS = {"routed": "routed, with", "true mask": "routed by the true mask"}
MINUTES = re.compile(r"^report: .*\(([\d.]+) minutes\)$", re.M)


def main() -> int:
    """Teach, score, draw, write the comparison."""
    args = _parser().parse_args()
    result: dict[str, Any] = provenance() | {"styles": {}}
    rows: list[list[Any]] = [[Image.fromarray(getattr(skimage.data, name)()) for name, _ in CASES]]
    for image in args.styles:
        folder = args.out / image.stem
        minutes = teach(image, args.photos, folder)
        scores, others = folder / "bench.json", folder / "held_out"
        run_python(
            "-m", "regionroute.cli", "label", "--labels", args.held_out / "labels.jsonl",
            "--images", args.held_out, "--styles", folder / "style.yaml", "--segmenter", "grabcut",
            "--size", 160, "--test-share", 1, *KEEP_ALL, "--out", others,
        )  # fmt: skip
        run_python(
            "bench/photos.py", "--manifest", others, "--experts", folder / "experts",
            "--weights", args.weights, "--pairs", 64, "--rows", *ROWS.values(),
            "--out", folder / "bench", "--result", scores,
        )  # fmt: skip
        methods = read_json(scores)["methods"]
        found = {name: methods[row]["all"] for name, row in ROWS.items()}
        result["styles"][image.stem] = {"minutes": minutes} | found
        pipe = RegionRoutePipeline.from_pretrained("nano-photos", experts=folder / "experts")
        done = [
            pipe(photo, object=word, style=image.stem, seed=0).images[0]
            for photo, (_, word) in zip(rows[0], CASES, strict=True)
        ]
        rows.append(done)
    write_json(args.result, result)
    sheet = np.concatenate([np.concatenate([square(p) for p in row], axis=1) for row in rows])
    Image.fromarray(sheet).save(args.sheet, quality=88)
    print(f"{args.result} and {args.sheet} written")
    return 0


def teach(image: Path, photos: Path, folder: Path) -> float:
    """Runs the command in a folder, unless it has run there; the minutes that it took."""
    log = folder.with_suffix(".log")
    if not log.is_file() or not MINUTES.search(log.read_text()):
        style = folder.with_name(f"{folder.name}_style")
        style.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, style)
        command = [sys.executable, "-m", "regionroute.cli", "teach", "--name", image.stem]
        command += ["--style-images", str(style), "--photos", str(photos), "--out", str(folder)]
        with log.open("w") as file:  # 1: it says that the style was not learned
            code = subprocess.run(command, stdout=file, stderr=file).returncode
        if code not in (0, 1):
            raise SystemExit(f"teaching {image.stem} failed, see {log}")
    found = MINUTES.search(log.read_text())
    assert found is not None, log
    return float(found[1])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--styles", type=Path, nargs="+", required=True, help="style images")
    parser.add_argument("--photos", type=Path, required=True, help="photos of one object each")
    parser.add_argument("--held-out", type=Path, required=True, help="photos to score on")
    parser.add_argument("--weights", type=Path, required=True, help="torchvision's AlexNet")
    parser.add_argument("--out", type=Path, default=Path("out/teach_bench"), help="working folder")
    parser.add_argument("--sheet", type=Path, default=Path("docs/taught.jpg"), help="picture")
    add_result_argument(parser, "teach")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
