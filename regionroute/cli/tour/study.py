"""``regionroute study``: what attention supervision does, from nothing to a report.

Every stage is a command a user could type, and is printed as such: scenes with exact targets,
experts trained without and with attention supervision at equal steps, edits of held-out scenes
(plainly, as in the paper, and routed by the map), scores, and one self-contained page. This module
only starts them and keeps the time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regionroute.cli.tour.stages import ROOT, Stopwatch, check_arguments
from regionroute.errors import Parser, UserError, command
from regionroute.files import read_json, write_json

BASE = "nano"  # that of the config
CONFIG = ROOT / "configs" / "nano.yaml"
# The two arms of the comparison, and the base as it comes; equal but for the supervision.
ARMS = {"without": ("supervision.focus=0", "supervision.cover=0"), "with": ()}
# How the held-out scenes are edited: by which arm's experts (None: the base alone), and how.
SINGLE = "flag:single"
FORMATS = {"in_mask_relative": ".0%", "success": ".0%", "leak": ".1%", "attention_iou": ".2f"}
METHODS = {
    "zero-shot": (None, "plain"),
    "without-plain": ("without", "plain"),
    "with-plain": ("with", "plain"),
    "without": ("without", "routed"),
    "with": ("with", "routed"),
}

EXAMPLES = """\
examples:
  regionroute study
  regionroute study --out out/long --steps 2000
  regionroute study --train 128 --test 64 --seed 3

A second run in the same folder goes on where the first stopped."""


def make_parser() -> Parser:
    """The command's arguments."""
    parser = Parser(
        prog="regionroute study",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", default="out/study", help="folder for everything (default: out/study)")
    add("--train", type=int, default=64, help="training scenes (default: 64)")
    add("--test", type=int, default=32, help="held-out scenes (default: 32)")
    add("--steps", type=int, help="training steps of each arm (default: configs/nano.yaml)")
    add("--seed", type=int, default=0, help="of training scenes, experts and noise (default: 0)")
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    """Runs the study; prints the report's path and the headline numbers."""
    args = make_parser().parse_args(argv)
    # A stage would refuse these only after the stages before it.
    check_arguments(args, {"train": 1, "test": 1, "steps": 1, "seed": 0})
    if not CONFIG.is_file():
        raise UserError(f"{CONFIG} is missing: run it from a clone of the project")
    out = Path(args.out)
    began = time.perf_counter()
    watch = Stopwatch()
    _make_scenes(watch, args, out)
    for arm, overrides in ARMS.items():
        _train(watch, args, out, arm, overrides)
    for method in METHODS:
        _edit(watch, args, out, method)
    _score(watch, out)
    _headline(out, time.perf_counter() - began)
    return 0


def _make_scenes(watch: Stopwatch, args: argparse.Namespace, out: Path) -> None:
    counts = ["--train", str(args.train), "--test", str(args.test), "--seed", str(args.seed)]
    watch.run("scenes", ["-m", "regionroute.cli", "scenes", "--out", str(out / "scenes"), *counts])


def _train(
    watch: Stopwatch, args: argparse.Namespace, out: Path, arm: str, overrides: Sequence[str]
) -> None:
    settings = [f"data.manifest={out / 'scenes'}", f"output={out / arm}", f"seed={args.seed}"]
    settings += [f"data.cache={out / 'cache'}", *overrides]
    if args.steps is not None:
        settings.append(f"train.steps={args.steps}")
    watch.run(
        f"training {arm} supervision",
        [str(ROOT / "train" / "run.py"), "--config", str(CONFIG), *settings],
    )


def _edit(watch: Stopwatch, args: argparse.Namespace, out: Path, method: str) -> None:
    arm, mode = METHODS[method]
    chosen = ["--experts", str(out / arm / "experts")] if arm else ["--zero-shot"]
    chosen += ["--base", BASE, "--mode", mode]
    arguments = ["--manifest", str(out / "scenes"), "--split", "test", *chosen]
    arguments += ["--out-dir", str(out / "edits" / method), "--seed", str(args.seed)]
    watch.run(
        f"edits, {method}", ["-m", "regionroute.cli", "edit", *arguments, "--batch-size", "16"]
    )


def _score(watch: Stopwatch, out: Path) -> None:
    codec = out / "scores" / "codec.json"
    codec.parent.mkdir(parents=True, exist_ok=True)
    manifest = ["--manifest", str(out / "scenes"), "--split", "test"]
    watch.run("codec round trip", [str(ROOT / "eval" / "codec.py"), *manifest, "--out", str(codec)])
    edits = [part for name in METHODS for part in ("--edits", f"{name}={out / 'edits' / name}")]
    scores = ["--out", str(out / "scores")]
    watch.run("scores", [str(ROOT / "eval" / "rses.py"), *manifest, *edits, *scores])
    notes = [{"label": stage, "value": f"{took:.0f} s"} for stage, took in watch.seconds.items()]
    write_json(out / "scores" / "notes.json", notes)
    report = ["--scores", str(out / "scores"), "--out", str(out / "report.html")]
    extras = ["--notes", str(out / "scores" / "notes.json"), "--codec", str(codec)]
    title = [
        "--title",
        "RegionRoute: with and without attention supervision",
    ]
    watch.run("report", [str(ROOT / "eval" / "report.py"), *report, *extras, *title])
    maps = [part for name in ARMS for part in ("--edits", f"{name}={out / 'edits' / name}")]
    page = ["--out", str(out / "maps.html")]
    watch.run("maps", [str(ROOT / "eval" / "maps.py"), *manifest, *maps, *page])


def _headline(out: Path, seconds: float) -> None:
    """The numbers people look for first: single-object scenes, with and without supervision."""
    methods: dict[str, Any] = read_json(out / "scores" / "summary.json")["methods"]
    codec = read_json(out / "scores" / "codec.json")["slices"]
    # A few held-out scenes may hold none with a single object.
    part = SINGLE if SINGLE in codec else "all"
    print(f"\n{'single-object' if part == SINGLE else 'all'} scenes, held out:")
    for name in METHODS:
        slices = methods[name]["slices"]
        text = {key: _number(entry["mean"], key) for key, entry in slices.get(part, {}).items()}
        print(
            f"  {name:13} in-mask error {text.get('in_mask_relative', '–')} of unedited"
            f" | success {text.get('success', '–')} | background error {text.get('mse_bg', '–')}"
            f" | leak {text.get('leak', '–')} | attention IoU {text.get('attention_iou', '–')}"
        )
    background = _number(codec[part]["mse_bg"]["mean"], "mse_bg")
    print(f"  codec         background error {background} from the round trip alone")
    print(f"maps:   {out / 'maps.html'}")
    print(f"report: {out / 'report.html'}   ({seconds / 60:.1f} minutes)")


def _number(value: float | None, metric: str) -> str:
    """A mean as the headline shows it; a dash where there is none."""
    return "–" if value is None else f"{value:{FORMATS.get(metric, '.4f')}}"


if __name__ == "__main__":
    raise SystemExit(main())
