"""``regionroute demo``: photos on two CPU cores, from labels to a report, in minutes."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from regionroute.cli.options import command_parser
from regionroute.cli.tour.stages import Stopwatch, begin_run, override, run_tour
from regionroute.cli.tour.teach import ONE_STEP
from regionroute.errors import Parser, UserError, command
from regionroute.files import read_json, write_jsonl
from regionroute.models import embedded as nano

CONFIG = "nano_photos"
# Photo, word and box (x, y, width, height in pixels), drawn by hand.
PHOTOS = (
    ("astronaut.png", "helmet", (262, 300, 248, 212)),
    ("chelsea.png", "cat", (0, 0, 385, 300)),
    ("coffee.png", "cup and saucer", (80, 18, 430, 382)),
    ("rocket.jpg", "rocket", (305, 127, 34, 283)),
    ("motorcycle_left.png", "motorcycle", (94, 110, 500, 345)),
)
NEW_STYLE = "risograph"
SHIPPED_STYLE = "starry-night"
EXAMPLES = """\
Every stage is a command that you could type yourself, and is printed as such. The photos come with
scikit-image (pip install 'regionroute[demo]').

examples:
  regionroute demo
  regionroute demo --out out/long --steps 400

The same command again resumes where it was stopped; with another seed it trains anew.
`regionroute study` measures what attention supervision does, on scenes with exact targets."""


def parser() -> Parser:
    """The arguments; building it imports nothing heavy."""
    parser = command_parser(
        "demo",
        "Cut objects out of five photos, paint them in a style that the embedded base "
        "has never seen, train an expert on the pairs, edit the photos in that style and in one "
        "that comes with the base, and score the edits. Takes minutes on two CPU cores.",
        EXAMPLES,
    )
    add = parser.add_argument
    add("--out", default="out/demo", metavar="DIR", help="folder for everything (out/demo)")
    add("--steps", type=int, default=100, metavar="N", help="training steps (100)")
    add("--seed", type=int, default=0, metavar="N", help="seed of experts and noise (0)")
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    """Runs the demo; prints where its images are."""
    return run_tour(argv, parser(), {"steps": 1, "seed": 0}, _stages)


def _stages(watch: Stopwatch, args: argparse.Namespace, out: Path) -> None:
    labels = write_photos(out / "photos")
    _label(watch, labels, out)
    _train(watch, args, out)
    _edit(watch, args, out)
    _score(watch, out)
    print(f"\nedits in {SHIPPED_STYLE}: {out / 'shipped'}")


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
    # These few photos are known to be fit: no large object and no bold style is rejected.
    how += ["--size", "256", "--max-area", "0.9", "--max-border", "1", "--min-structure", "-1"]
    # The expert learns the style from whole photos too: it has to paint objects it has not seen.
    how += ["--whole", "--test-share", "0.3", "--out", str(out / "pairs")]
    watch.run("labels", ["label", "--labels", str(labels), *how])


def _train(watch: Stopwatch, args: argparse.Namespace, out: Path) -> None:
    begin_run(out / "run", out / "pairs", seed=args.seed)
    settings = [
        override("data.manifest", out / "pairs"),
        override("output", out / "run"),
        f"train.steps={args.steps}",
        f"seed={args.seed}",
        "experts.styles=null",
        *ONE_STEP,
    ]
    watch.run("training", ["train", "--config", CONFIG, *settings])


def _edit(watch: Stopwatch, args: argparse.Namespace, out: Path) -> None:
    for split in ("train", "test"):
        given = ["--manifest", str(out / "pairs"), "--split", split, "--seed", str(args.seed)]
        given += ["--experts", str(out / "run" / "experts"), "--out-dir", str(out / "edits")]
        watch.run(f"edits, {NEW_STYLE}, {split} photos", ["edit", *given])
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
        ["edit", "--batch", str(out / "shipped.jsonl"), "--base", nano.PHOTOS],
    )


def _score(watch: Stopwatch, out: Path) -> None:
    given = ["--manifest", str(out / "pairs"), "--split", "all"]
    given += ["--edits", f"{NEW_STYLE}={out / 'edits'}"]
    watch.run("scores", ["score", *given, "--out", str(out / "scores")])
    watch.report(out, "RegionRoute demo: photos, only the named object is restyled")
    slices = read_json(out / "scores" / "summary.json")["methods"][NEW_STYLE]["slices"]
    residual = slices["all"]["in_mask_ratio"]["mean"]
    print(f"residual error on the objects: {residual:.0%} of that of the unedited photos")
