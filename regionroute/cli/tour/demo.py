"""``regionroute demo``: real photos on two CPU cores, from labels to a report, in minutes.

Photos that come with scikit-image are cut out of hand-drawn boxes and painted in a style that the
embedded base has never seen; an expert is trained for it, the photos are edited, also in a style
that comes with the base, and scored. Every stage is a command a user could type, and is printed as
such.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

from regionroute.cli.tour.stages import ROOT, Stopwatch, check_arguments
from regionroute.errors import Parser, UserError, command
from regionroute.files import read_json, write_json, write_jsonl
from regionroute.models import embedded as nano

CONFIG = ROOT / "configs" / "nano_photos.yaml"
# Photo, word and box (x, y, width, height in pixels), drawn by hand.
PHOTOS = (
    ("astronaut.png", "astronaut", (20, 13, 360, 499)),
    ("chelsea.png", "cat", (0, 0, 385, 300)),
    ("coffee.png", "cup", (168, 18, 254, 272)),
    ("rocket.jpg", "rocket", (305, 127, 34, 283)),
    ("motorcycle_left.png", "motorcycle", (94, 76, 590, 378)),
)
NEW_STYLE = "risograph"
SHIPPED_STYLE = "starry-night"
EXAMPLES = """\
examples:
  regionroute demo
  regionroute demo --out out/long --steps 400

A second run in the same folder goes on where the first stopped. `regionroute study` measures what
attention supervision does, on scenes with exact targets."""


def make_parser() -> Parser:
    """The command's arguments."""
    parser = Parser(
        prog="regionroute demo",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", default="out/demo", help="folder for everything (default: out/demo)")
    add("--steps", type=int, default=60, help="training steps (default: 60)")
    add("--seed", type=int, default=0, help="of experts and noise (default: 0)")
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    """Runs the demo; prints where its pictures are."""
    args = make_parser().parse_args(argv)
    check_arguments(args, {"steps": 1, "seed": 0})
    if not CONFIG.is_file():
        raise UserError(f"{CONFIG} is missing: run it from a clone of the project")
    out = Path(args.out)
    began = time.perf_counter()
    watch = Stopwatch()
    labels = write_photos(out / "photos")
    _label(watch, labels, out)
    _train(watch, args, out)
    _edit(watch, args, out)
    _score(watch, out)
    print(f"\nedits in {SHIPPED_STYLE}: {out / 'shipped'}")
    print(f"report: {out / 'report.html'}   ({(time.perf_counter() - began) / 60:.1f} minutes)")
    return 0


def write_photos(folder: Path) -> Path:
    """Copies the photos and writes their labels file; returns that.

    Raises:
        UserError: scikit-image is not installed, or lacks a photo.
    """
    try:
        import skimage.data
    except ImportError:
        raise UserError(
            "the demo's photos come with scikit-image: pip install scikit-image"
        ) from None
    source = Path(skimage.data.__file__).parent
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for file, word, box in PHOTOS:
        if not (source / file).is_file():
            raise UserError(f"scikit-image comes without {file} here: install its release 0.26")
        shutil.copyfile(source / file, folder / file)
        rows.append({"image": file, "objects": [{"word": word, "bbox": list(box)}]})
    write_jsonl(folder / "labels.jsonl", rows)
    return folder / "labels.jsonl"


def _label(watch: Stopwatch, labels: Path, out: Path) -> None:
    """Masks from the boxes, targets from a style the base does not know."""
    how = ["--segmenter", "grabcut", "--styles", "photos", "--only", NEW_STYLE]
    # These few photos are known to be fit: no large object and no bold style is turned away.
    how += ["--size", "256", "--max-area", "0.9", "--max-border", "1", "--min-structure", "-1"]
    # The expert learns the style from whole photos too: it is to paint objects it has not seen.
    how += ["--whole", "--split-val", "0.3", "--out", str(out / "pairs")]
    watch.run("labels", ["-m", "regionroute.cli", "label", "--labels", str(labels), *how])


def _train(watch: Stopwatch, args: argparse.Namespace, out: Path) -> None:
    settings = [
        f"data.manifest={out / 'pairs'}",
        f"output={out / 'run'}",
        f"train.steps={args.steps}",
        f"seed={args.seed}",
        "experts.styles=null",
        # The base does not know this style: the expert has to paint it.
        "routing.branch=expert",
    ]
    watch.run("training", [str(ROOT / "train/run.py"), "--config", str(CONFIG), *settings])


def _edit(watch: Stopwatch, args: argparse.Namespace, out: Path) -> None:
    edit = ["-m", "regionroute.cli", "edit"]
    for split in ("train", "test"):
        given = ["--manifest", str(out / "pairs"), "--split", split, "--seed", str(args.seed)]
        given += ["--experts", str(out / "run" / "experts"), "--out-dir", str(out / "edits")]
        watch.run(f"edits, {NEW_STYLE}, {split} photos", [*edit, *given])
    rows = [
        {
            "image": f"photos/{file}",
            "object": word,
            "style": SHIPPED_STYLE,
            "out": f"shipped/{Path(file).stem}.png",
            "side_by_side": f"shipped/{Path(file).stem}-compared.png",
        }
        for file, word, _ in PHOTOS
    ]
    write_jsonl(out / "shipped.jsonl", rows)
    watch.run(
        f"edits, {SHIPPED_STYLE}, full size",
        [*edit, "--batch", str(out / "shipped.jsonl"), "--base", nano.PHOTOS],
    )


def _score(watch: Stopwatch, out: Path) -> None:
    manifest = ["--manifest", str(out / "pairs"), "--split", "all"]
    edits = ["--edits", f"{NEW_STYLE}={out / 'edits'}"]
    watch.run(
        "scores",
        [str(ROOT / "eval" / "rses.py"), *manifest, *edits, "--out", str(out / "scores")],
    )
    notes = [{"label": stage, "value": f"{took:.0f} s"} for stage, took in watch.seconds.items()]
    write_json(out / "scores" / "notes.json", notes)
    report = ["--scores", str(out / "scores"), "--out", str(out / "report.html")]
    report += ["--notes", str(out / "scores" / "notes.json")]
    title = ["--title", "RegionRoute demo: photos, only the named object is restyled"]
    watch.run("report", [str(ROOT / "eval" / "report.py"), *report, *title])
    slices = read_json(out / "scores" / "summary.json")["methods"][NEW_STYLE]["slices"]
    print(f"error left on the objects: {slices['all']['in_mask_relative']['mean']:.0%}")
