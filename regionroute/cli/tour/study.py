"""``regionroute study``: what attention supervision does, from nothing to a report."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regionroute.cli.options import command_parser
from regionroute.cli.tour.stages import Stopwatch, begin_run, override, run_tour
from regionroute.errors import Parser, command
from regionroute.files import read_json

BASE = "nano"  # that of the config
CONFIG = "nano"
# The two arms of the comparison, and the base as it comes; equal but for the supervision.
ARMS = {"without": ("supervision.focus=0", "supervision.cover=0"), "with": ()}
# How the held-out scenes are edited: by which arm's experts (None: the base alone), and how.
SINGLE = "flag:single"
FORMATS = {"in_mask_ratio": ".0%", "success": ".0%", "leak": ".1%", "attention_iou": ".2f"}
METHODS = {
    "zero-shot": (None, "plain"),
    "without-plain": ("without", "plain"),
    "with-plain": ("with", "plain"),
    "without": ("without", "routed"),
    "with": ("with", "routed"),
}

EXAMPLES = """\
Every stage is a command that you could type yourself, and is printed as such: scenes with exact
targets; experts trained without and with attention supervision for the same number of steps; edits
of held-out scenes, by the prompt alone as in the paper and routed by the region map; scores; one
self-contained page.

examples:
  regionroute study
  regionroute study --out out/long --steps 2000
  regionroute study --train 128 --test 64 --seed 3

The same command again resumes where it was stopped; with another seed it trains anew."""


def parser() -> Parser:
    """The arguments; building it imports nothing heavy."""
    parser = command_parser(
        "study",
        "Measure what attention supervision does, on drawn scenes with the embedded base nano.",
        EXAMPLES,
    )
    add = parser.add_argument
    add("--out", default="out/study", metavar="DIR", help="folder for everything (out/study)")
    add("--train", type=int, default=64, metavar="N", help="training scenes (64)")
    add("--test", type=int, default=32, metavar="N", help="held-out scenes (32)")
    add("--steps", type=int, metavar="N", help="training steps of each arm (those of nano.yaml)")
    add("--seed", type=int, default=0, metavar="N", help="seed of scenes, experts and noise (0)")
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    """Runs the study; prints the report's path and the headline numbers."""
    return run_tour(argv, parser(), {"train": 1, "test": 1, "steps": 1, "seed": 0}, _stages)


def _stages(watch: Stopwatch, args: argparse.Namespace, out: Path) -> None:
    _make_scenes(watch, args, out)
    for arm, overrides in ARMS.items():
        _train(watch, args, out, arm, overrides)
    for method in METHODS:
        _edit(watch, args, out, method)
    _score(watch, out)
    _headline(out)


def _make_scenes(watch: Stopwatch, args: argparse.Namespace, out: Path) -> None:
    counts = ["--train", str(args.train), "--test", str(args.test), "--seed", str(args.seed)]
    watch.run("scenes", ["scenes", "--out", str(out / "scenes"), *counts])


def _train(
    watch: Stopwatch, args: argparse.Namespace, out: Path, arm: str, overrides: Sequence[str]
) -> None:
    begin_run(out / arm, out / "scenes", seed=args.seed)
    settings = [override("data.manifest", out / "scenes"), override("output", out / arm)]
    settings += [override("data.cache", out / "cache"), f"seed={args.seed}", *overrides]
    if args.steps is not None:
        settings.append(f"train.steps={args.steps}")
    watch.run(
        f"training {arm} supervision",
        ["train", "--config", CONFIG, *settings],
    )


def _edit(watch: Stopwatch, args: argparse.Namespace, out: Path, method: str) -> None:
    arm, mode = METHODS[method]
    chosen = ["--experts", str(out / arm / "experts")] if arm else ["--zero-shot"]
    chosen += ["--base", BASE, "--mode", mode]
    arguments = ["--manifest", str(out / "scenes"), "--split", "test", *chosen]
    arguments += ["--out-dir", str(out / "edits" / method), "--seed", str(args.seed)]
    watch.run(f"edits, {method}", ["edit", *arguments, "--batch-size", "16"])


def _score(watch: Stopwatch, out: Path) -> None:
    codec = out / "scores" / "codec.json"
    codec.parent.mkdir(parents=True, exist_ok=True)
    manifest = ["--manifest", str(out / "scenes"), "--split", "test"]
    watch.run("codec round trip", ["codec", *manifest, "--out", str(codec)])
    edits = [part for name in METHODS for part in ("--edits", f"{name}={out / 'edits' / name}")]
    watch.run("scores", ["score", *manifest, *edits, "--out", str(out / "scores")])
    title = "RegionRoute: with and without attention supervision"
    watch.report(out, title, "--codec", str(codec))
    maps = [part for name in ARMS for part in ("--edits", f"{name}={out / 'edits' / name}")]
    watch.run("maps", ["maps", *manifest, *maps, "--out", str(out / "maps.html")])


def _headline(out: Path) -> None:
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
            f"  {name:13} in-mask error {text.get('in_mask_ratio', '–')} of unedited"
            f" | success {text.get('success', '–')} | background error {text.get('mse_bg', '–')}"
            f" | leak {text.get('leak', '–')} | attention IoU {text.get('attention_iou', '–')}"
        )
    background = _number(codec[part]["mse_bg"]["mean"], "mse_bg")
    print(f"  codec         background error {background} from the round trip alone")
    print(f"maps:   {out / 'maps.html'}")


def _number(value: float | None, metric: str) -> str:
    """A mean as the headline shows it; a dash where there is none."""
    return "–" if value is None else f"{value:{FORMATS.get(metric, '.4f')}}"
