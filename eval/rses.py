r"""Scores edited pictures: the Regional Style Editing Score and its company.

    python eval/rses.py --manifest data/scenes/manifest.jsonl --split test \
        --edits without=out/a --edits with=out/b --out scores/ --report report.html

Edits are found as DIR/<id>.png beside their sidecar DIR/<id>.json and map DIR/<id>.map.png. Written
are samples.jsonl (a row for each sample and method), summary.json, summary.md and, when asked for,
one self-contained report. The unedited picture ("floor") and the target ("ceiling") are scored as
methods of their own.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from eval.edits import parse_edits
from eval.features import (
    CLIP_REMEDY,
    LPIPS_REMEDY,
    find_lpips_weights,
    load_clip,
    load_lpips,
    usable_device,
)
from eval.metrics import CATALOGUE, SampleMetric, build_metrics
from eval.page import check_option, check_page
from eval.report import write_report
from eval.scoring import Row, Scorer, select_split
from eval.summary import RELATIVE_DEFINITION, bootstrap_settings, edit_methods, summarise
from eval.tables import main_table, markdown
from regionroute.errors import Parser, UserError, command
from regionroute.io import atomic_write, check_output_folder, file_hash, write_json, write_jsonl
from regionroute.manifest import manifest_file, read_manifest

PACKAGES = ("regionroute", "torch", "torchvision", "transformers", "lpips", "numpy")


def make_parser() -> Parser:
    """The command's arguments."""
    parser = Parser(
        prog="python eval/rses.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--manifest", required=True, help="manifest.jsonl or its folder")
    add("--split", default="test", help='split to score, "all" for every sample (default: test)')
    add(
        "--edits",
        action="append",
        required=True,
        metavar="[NAME=]DIR",
        help="a method's folder of edits; repeat it for every method to compare",
    )
    add("--out", required=True, help="folder for samples.jsonl, summary.json and summary.md")
    add("--clip", metavar="NAME_OR_FOLDER", help="image-text encoder for RSM; without it no RSM")
    add(
        "--lpips-weights",
        metavar="FILE_OR_FOLDER",
        help="torchvision's AlexNet weights for LPIPS (default: $REGIONROUTE_LPIPS, else torch "
        "hub's cache)",
    )
    add("--report", metavar="FILE", help="also write the report as one HTML file")
    add("--title", help="title of the report")
    add("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    add("--batch-size", type=int, default=16, help="pictures scored at once (default: 16)")
    add("--seed", type=int, default=0, help="of the bootstrap intervals (default: 0)")
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    """Runs the command; 1 if no edit at all could be scored."""
    args = make_parser().parse_args(argv)
    _check(args)
    methods = parse_edits(args.edits)
    manifest = read_manifest(args.manifest)
    samples = select_split(manifest, args.split)
    device = usable_device(args.device)
    metrics, skipped = load_metrics(args.lpips_weights, args.clip, device)
    for name, reason in skipped.items():
        print(f"{name} is left out: {reason}", file=sys.stderr)
    out = Path(args.out)
    scorer = Scorer(manifest, methods, metrics, out, device, on_problem=_say)
    rows = scorer.score(samples, args.batch_size)
    names = [metric.name for metric in metrics]
    summary = {
        **_header(args, methods, len(samples), metrics, skipped),
        **summarise(rows, names, args.seed),
    }
    _write(out, rows, summary)
    if args.report:
        write_report(out, Path(args.report), title=args.title)
    return _finish(args, summary, out)


def _check(args: argparse.Namespace) -> None:
    """Finds what would fail only after all the work."""
    if args.batch_size < 1:
        raise UserError(f"--batch-size {args.batch_size}: must be at least 1")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: must not be negative")
    check_option("--out", args.out, check_output_folder)
    if args.report:
        check_page("--report", args.report)


def load_metrics(
    lpips_weights: str | None, clip: str | None, device: torch.device
) -> tuple[list[SampleMetric], dict[str, str]]:
    """The metrics whose networks are there, and for each other the way to get it.

    Raises:
        UserError: a network that was asked for cannot be loaded.
    """
    path = find_lpips_weights(lpips_weights)
    distance = load_lpips(path, device) if path else None
    encoder = load_clip(clip, device) if clip else None
    skipped = {}
    if distance is None:
        skipped["lpips_bg"] = f"no AlexNet weights; {LPIPS_REMEDY}"
    if encoder is None:
        skipped["rsm"] = f"no image-text encoder; {CLIP_REMEDY}"
    return build_metrics(distance, encoder), skipped


def _header(
    args: argparse.Namespace,
    methods: dict[str, Path],
    count: int,
    metrics: Sequence[SampleMetric],
    skipped: dict[str, str],
) -> dict[str, Any]:
    """What was measured and how; the numbers follow."""
    file = manifest_file(args.manifest)
    return {
        "manifest": {
            "path": file.as_posix(),
            "hash": file_hash(file),
            "split": args.split,
            "samples": count,
        },
        "edits": {name: folder.as_posix() for name, folder in methods.items()},
        "metrics": {metric.name: describe_metric(metric) for metric in metrics},
        "skipped": skipped,
        "derived": {"in_mask_relative": RELATIVE_DEFINITION},
        "bootstrap": bootstrap_settings(args.seed),
        "versions": {name: version(name) for name in PACKAGES},
    }


def describe_metric(metric: SampleMetric) -> dict[str, Any]:
    """A metric's definition with the network it used, for the output file."""
    info = CATALOGUE[metric.name]
    entry: dict[str, Any] = {
        "label": info.label,
        "better": info.better,
        "unit": info.unit,
        "definition": info.definition,
    }
    return {**entry, "encoder": metric.encoder} if metric.encoder else entry


def _write(out: Path, rows: list[Row], summary: dict[str, Any]) -> None:
    write_jsonl(out / "samples.jsonl", rows)
    write_json(out / "summary.json", summary)
    with atomic_write(out / "summary.md") as temporary:
        temporary.write_text(markdown(summary), encoding="utf-8")


def _finish(args: argparse.Namespace, summary: dict[str, Any], out: Path) -> int:
    """Prints the table, the failures' number and where the files are."""
    print(main_table(summary, [CATALOGUE[name] for name in summary["metrics"]]))
    entries = {name: summary["methods"][name] for name in edit_methods(summary["methods"])}
    for name, entry in entries.items():
        if entry["n_failed"]:
            print(f"{name}: {entry['n_failed']} of {entry['n_samples']} failed", file=sys.stderr)
    print(f"scores: {out / 'summary.md'}")
    if args.report:
        print(f"report: {args.report}")
    return 0 if any(entry["n_scored"] for entry in entries.values()) else 1


def _say(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
