r"""Scores edited pictures: the Regional Style Editing Score and its company.

    python eval/rses.py --manifest data/scenes --edits ours=out/a --edits kontext=out/b \
        --out scores/ --report report.html
    python eval/rses.py … --judge Qwen/Qwen2.5-VL-7B-Instruct         # its four questions as well
    python eval/rses.py … --metrics rse,ssim,gram --style-images styles/ --encoder vgg=vgg19.pth
    python eval/rses.py … --fail-if "lpips_bg>0.1" --fail-if "ours:success<0.8"

Edits are found as DIR/<id>.png, or by their context's file name, beside their sidecar DIR/<id>.json
and map DIR/<id>.map.png. Written are samples.jsonl and samples.csv (a row for each sample and
method), summary.json, summary.md and summary.tex and, when asked for, one self-contained report.
The unedited picture ("floor") and the target ("ceiling") are scored as methods of their own.

What was measured once is kept in cache.jsonl by the content of its files: a run that was stopped
goes on, and a further metric or method costs only itself.

Exit code: 0 all is well, 1 no edit could be scored, 2 a mistake in what was given, 3 a --fail-if
was met.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eval.cache import CACHE_FILE, ValueCache
from eval.edits import SIZE_RULE, parse_edits
from eval.encoders.features import usable_device
from eval.encoders.networks import REMEDIES, Networks, load_networks, parse_places
from eval.metrics import CATALOGUE, GROUPS, SampleMetric
from eval.metrics.build import build_metrics
from eval.metrics.choice import SET_METRICS, choose_metrics, needs_of
from eval.metrics.views import SCOPES
from eval.report.html import write_report
from eval.report.page import check_option, check_page
from eval.report.tables import csv_rows, latex, main_table, markdown
from eval.scoring import Row, Scorer
from eval.sets import describe_sets, score_sets
from eval.sources import select_split
from eval.summary import RELATIVE_DEFINITION, bootstrap_settings, edit_methods, summarise
from eval.thresholds import parse_thresholds, violations
from regionroute.data.manifest import EditSample, load_manifest, manifest_file, manifest_files
from regionroute.errors import Parser, UserError, command
from regionroute.files import (
    atomic_write,
    check_output_folder,
    file_hash,
    settings_hash,
    write_json,
    write_jsonl,
)

PACKAGES = ("regionroute", "torch", "torchvision", "transformers", "lpips", "numpy")


def _add_networks(parser: Parser) -> None:
    """Where the networks of the metrics are; what is not there is left out."""
    add = parser.add_argument
    add("--clip", metavar="NAME_OR_FOLDER", help="image-text encoder for RSM; without it no RSM")
    add(
        "--lpips-weights",
        metavar="FILE_OR_FOLDER",
        help="torchvision's AlexNet weights for LPIPS (default: $REGIONROUTE_LPIPS, else torch "
        "hub's cache)",
    )
    add(
        "--encoder",
        action="append",
        default=[],
        metavar="NAME=PLACE",
        help="a further network: dino, csd, dreamsim, aesthetic, vgg or inception; repeat it",
    )
    add("--style-images", metavar="DIR", help="pictures of the styles: <style>.jpg, <style>/*.jpg")
    add("--judge", metavar="NAME_OR_FOLDER", help="vision-language model for questions 1 to 4")
    add("--judge-config", metavar="FILE", help="its prompts and table of opposite styles (YAML)")


def make_parser() -> Parser:
    """The command's arguments."""
    parser = Parser(
        prog="regionroute score",
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
    add("--out", required=True, help="folder for the scores")
    add(
        "--metrics",
        default="rse",
        metavar="NAMES",
        help="metrics and groups of metrics with commas between them (default: rse). Groups: "
        + "; ".join(f"{name}, {text}" for name, text in GROUPS.items())
        + "; all",
    )
    _add_networks(parser)
    add(
        "--scope",
        choices=list(SCOPES),
        default="object",
        help="what the sister systems' measures look at: each region's padded box, or the whole "
        "picture as they are published (default: object)",
    )
    add(
        "--fail-if",
        action="append",
        default=[],
        metavar="CONDITION",
        help='exit with 3 if a mean is so, "lpips_bg>0.1" of any method, "ours:success<0.8" of one',
    )
    add("--report", metavar="FILE", help="also write the report as one HTML file")
    add("--title", help="title of the report")
    add("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    add("--batch-size", type=int, default=8, help="pictures scored at once (default: 8)")
    add("--seed", type=int, default=0, help="of the bootstrap intervals (default: 0)")
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    """Runs the command; see the exit codes above."""
    args = make_parser().parse_args(argv)
    _check(args)
    methods = parse_edits(args.edits)
    names = choose_metrics(args.metrics, judged=args.judge is not None)
    thresholds = parse_thresholds(args.fail_if, list(methods), names)
    manifest = load_manifest(args.manifest)
    samples = select_split(manifest, args.split)
    device = usable_device(args.device)
    out = Path(args.out)
    networks = _networks(args, names, out)
    metrics = build_metrics(networks, names, args.scope)
    skipped = _skipped(names, networks)
    for name, reason in skipped.items():
        print(f"{name} is left out: {reason}", file=sys.stderr)
    _warn_styles(networks, samples, names)
    cache = ValueCache(out / CACHE_FILE)
    scorer = Scorer(manifest, methods, metrics, out, device, on_problem=_say, cache=cache)
    rows = scorer.score(samples, args.batch_size)
    summary = {
        **_header(args, methods, len(samples), metrics, skipped),
        **summarise(rows, [metric.name for metric in metrics], args.seed),
        **_sets(args, names, networks, rows, out),
        **_judged(networks),
    }
    _write(out, rows, summary)
    if args.report:
        write_report(out, Path(args.report), title=args.title)
    code = _finish(args, summary, out)
    return code or _failed(violations(thresholds, summary))


def _check(args: argparse.Namespace) -> None:
    """Finds what would fail only after all the work."""
    if args.batch_size < 1:
        raise UserError(f"--batch-size {args.batch_size}: must be at least 1")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: must not be negative")
    check_option("--out", args.out, check_output_folder)
    if args.report:
        check_page("--report", args.report)
    if args.judge_config and not args.judge:
        raise UserError("--judge-config: there is no judge to ask, give --judge as well")


def _networks(args: argparse.Namespace, names: Sequence[str], out: Path) -> Networks:
    """What the metrics need, as far as it was given.

    Raises:
        UserError: something that was asked for cannot be loaded.
    """
    return load_networks(
        needs_of(names),
        parse_places(args.encoder),
        lpips_weights=args.lpips_weights,
        clip=args.clip,
        judge=args.judge,
        judge_config=args.judge_config,
        style_images=args.style_images,
        out=out,
        device=usable_device(args.device),
    )


def _skipped(names: Sequence[str], networks: Networks) -> dict[str, str]:
    """For each metric that cannot be computed the way to get what it lacks."""
    reasons = {}
    for name in names:
        needs = SET_METRICS[name][0] if name in SET_METRICS else CATALOGUE[name].needs
        lacking = networks.lacks(needs)
        if lacking:
            reasons[name] = REMEDIES[lacking]
    return reasons


def _warn_styles(networks: Networks, samples: Sequence[EditSample], names: Sequence[str]) -> None:
    """Names the styles without a style image or without an opposite of their own."""
    wanted = [region.style for sample in samples for region in sample.regions]
    for style in networks.styles.missing(wanted) if networks.styles else []:
        _say(f"--style-images: no image of {style!r}, its edits are not compared with any")
    if networks.judge and {"q3", "q4"} & set(names):
        for sentence in networks.judge.config.warnings(wanted):
            _say(sentence)


def _header(
    args: argparse.Namespace,
    methods: dict[str, Path],
    count: int,
    metrics: Sequence[SampleMetric],
    skipped: dict[str, str],
) -> dict[str, Any]:
    """What was measured and how; the numbers follow."""
    file = manifest_file(args.manifest)
    hashes = [file_hash(one) for one in manifest_files(args.manifest)]
    return {
        "manifest": {
            "path": file.as_posix(),
            "hash": hashes[0] if len(hashes) == 1 else settings_hash(hashes),
            "split": args.split,
            "samples": count,
        },
        "edits": {name: folder.as_posix() for name, folder in methods.items()},
        "size_rule": SIZE_RULE,
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
        "group": info.group,
        "definition": metric.definition,
    }
    return {**entry, "encoder": metric.encoder} if metric.encoder else entry


def _sets(
    args: argparse.Namespace, names: Sequence[str], networks: Networks, rows: list[Row], out: Path
) -> dict[str, Any]:
    """FID and ArtFID where they were asked for and can be made."""
    if networks.inception is None or networks.styles is None:
        return {}
    found = score_sets(rows, out, networks.inception, networks.styles, args.scope)
    asked = [name for name in SET_METRICS if name in names]
    kept = {m: {n: e for n, e in entry.items() if n in asked} for m, entry in found.items()}
    return {"sets": {**describe_sets(networks.inception, args.scope), "methods": kept}}


def _judged(networks: Networks) -> dict[str, Any]:
    """Who judged and how; the answers are in judge.jsonl."""
    judge = networks.judge
    if judge is None:
        return {}
    settings = judge.config.model_dump()
    return {"judge": {**judge.identity(), "config": settings, "answers": judge.counts()}}


def _write(out: Path, rows: list[Row], summary: dict[str, Any]) -> None:
    write_jsonl(out / "samples.jsonl", rows)
    write_json(out / "summary.json", summary)
    texts = {
        "samples.csv": csv_rows(rows, list(summary["metrics"])),
        "summary.md": markdown(summary),
        "summary.tex": latex(summary),
    }
    for name, text in texts.items():
        with atomic_write(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _finish(args: argparse.Namespace, summary: dict[str, Any], out: Path) -> int:
    """Prints the table, the failures' number and where the files are."""
    print(main_table(summary, [CATALOGUE[name] for name in summary["metrics"]]))
    entries = {name: summary["methods"][name] for name in edit_methods(summary["methods"])}
    for name, entry in entries.items():
        if entry["n_failed"]:
            print(f"{name}: {entry['n_failed']} of {entry['n_samples']} failed", file=sys.stderr)
        for kind, count in entry["remarks"].items():
            print(f"{name}: {count} of {entry['n_samples']}: {kind}", file=sys.stderr)
    print(f"scores: {out / 'summary.md'}")
    if args.report:
        print(f"report: {args.report}")
    return 0 if any(entry["n_scored"] for entry in entries.values()) else 1


def _failed(sentences: Sequence[str]) -> int:
    for sentence in sentences:
        print(f"--fail-if: {sentence}", file=sys.stderr)
    return 3 if sentences else 0


def _say(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
