r"""``regionroute score``: the Regional Style Editing Score and the metrics of other papers.

`eval.rses.score` does the same in Python.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from regionroute.cli.options import (
    add_batch_size,
    add_device,
    add_engine,
    add_manifest,
    add_seed,
    check_least,
    command_parser,
    engine_of,
)
from regionroute.errors import Parser, UserError, command
from regionroute.files import check_output_folder
from regionroute.remote import staged

if TYPE_CHECKING:
    from eval.score import ScoreNetworks, ScoreReport, score

__all__ = ["ScoreNetworks", "ScoreReport", "main", "parser", "score"]

DESCRIPTION = (
    "Score edits of a manifest: the Regional Style Editing Score and the metrics of other papers."
)
EPILOG = """\
examples:
  regionroute score --manifest data/scenes --edits ours=out/a --edits kontext=out/b --out scores \\
      --report report.html
  regionroute score --manifest data/pets --edits out/a --out scores --fail-if "lpips_bg>0.1"
  regionroute score --manifest data/pets --edits out/a --out scores \\
      --judge Qwen/Qwen2.5-VL-7B-Instruct
  regionroute score --manifest data/pets --edits out/a --out scores --metrics rse,ssim,gram \\
      --style-images styles --encoder vgg=vgg19.pth
  python eval/rses.py --manifest data/scenes --edits out/a --out scores     # the same, in a clone

Edits are found as DIR/<id>.png, or by their context's file name, next to their sidecar
DIR/<id>.json and map DIR/<id>.map.png. The folder --out gets samples.jsonl and samples.csv (a row
for each sample and method), summary.json, summary.md and summary.tex. The unedited image ("floor")
and the target ("ceiling") are scored as methods of their own.

Measured values are kept in OUT/cache.jsonl by the content of their files: a stopped run resumes,
and a further metric or method costs only itself.

Groups of metrics: rse (the Regional Style Editing Score), vlm (its four questions to a
vision-language model), aggregate, and those of other papers: styleexpert, stylegallery, stylemamba;
or all.

The Regional Style Editing Score consists of components; the paper defines no single number.
--metrics rse,aggregate adds one of our own, rse_aggregate: the geometric mean of the normalised
style match and the preservation of the background, in [0,1], shown next to both.

`eval.rses.score` does the same in Python.

Exit code: 0 success, 1 no edit could be scored, 2 wrong arguments, 3 a --fail-if was met."""


def __getattr__(name: str) -> Any:
    """`score` and its types on first use: they import torch, which ``--help`` does not need."""
    if name in ("ScoreNetworks", "ScoreReport", "score"):
        from eval import score as library

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def parser() -> Parser:
    """The arguments; building it imports nothing heavy."""
    parser = command_parser("score", DESCRIPTION, EPILOG)
    add = parser.add_argument
    add_manifest(parser)
    add(
        "--edits",
        action="append",
        required=True,
        metavar="[NAME=]DIR",
        help="folder of a method's edits; repeat it to compare methods",
    )
    add("--out", required=True, metavar="DIR", help="folder for the scores")
    add("--metrics", default="rse", metavar="A,B", help="metrics and groups of metrics (rse)")
    add(
        "--scope",
        type=_scope,
        choices=("object", "image"),
        default="object",
        help="what the metrics of other papers are measured on: each region's padded box, or the "
        "whole image as published (object)",
    )
    add(
        "--fail-if",
        action="append",
        default=[],
        metavar="CONDITION",
        help='exit with 3 if a mean meets it: "lpips_bg>0.1" of any method, "ours:success<0.8"',
    )
    add("--report", metavar="HTML", help="write the report as one HTML file too")
    add("--title", help="heading of the report")
    add_device(parser, "cpu")
    add_batch_size(parser)
    add_seed(parser, "the bootstrap intervals")
    _add_networks(parser)
    add_engine(parser, "1")
    return parser


def _scope(text: str) -> str:
    """The scope; "picture" is its older name."""
    if text == "picture":
        print("--scope picture: this is now `--scope image`", file=sys.stderr)
        return "image"
    return text


def _add_networks(parser: Parser) -> None:
    group = parser.add_argument_group("networks (a metric whose network is missing is skipped)")
    add = group.add_argument
    add("--clip", metavar="NAME", help="image-text encoder for RSM, hub id or folder")
    add(
        "--lpips-weights",
        metavar="PATH",
        help="torchvision's AlexNet weights for LPIPS ($REGIONROUTE_LPIPS, else torch hub's cache)",
    )
    add(
        "--encoder",
        action="append",
        default=[],
        metavar="NAME=PLACE",
        help="further network: dino, csd, dreamsim, aesthetic, vgg or inception; repeat it",
    )
    add("--style-images", metavar="DIR", help="images of the styles: <style>.jpg, <style>/*.jpg")
    add("--judge", metavar="NAME", help="vision-language model for the four questions")
    add("--judge-config", metavar="FILE", help="its prompts and opposite styles, YAML (built in)")


@command
@staged
def main(argv: list[str] | None = None) -> int:
    """Runs the command; see the exit codes above."""
    args = parser().parse_args(argv)
    _check(args)
    engine = engine_of(args)
    from eval.score import ScoreNetworks, score

    networks = ScoreNetworks(
        args.clip, args.lpips_weights, args.encoder, args.style_images, args.judge,
        args.judge_config,
    )  # fmt: skip
    report = score(
        args.manifest,
        args.edits,
        args.out,
        split=args.split,
        metrics=args.metrics,
        networks=networks,
        scope=args.scope,
        fail_if=args.fail_if,
        report=args.report,
        title=args.title,
        device=args.device,
        batch_size=args.batch_size,
        seed=args.seed,
        engine=engine,
    )
    _print(report)
    if not report.scored:
        return 1
    return 3 if report.violations else 0


def _check(args: argparse.Namespace) -> None:
    """Finds what would fail only after all the work."""
    check_least(args, {"batch_size": 1, "seed": 0})
    if args.judge_config and not args.judge:
        raise UserError("--judge-config: there is no judge to ask, give --judge as well")
    from eval.report.page import check_option, check_page

    check_option("--out", args.out, check_output_folder)
    if args.report:
        check_page("--report", args.report)


def _print(report: ScoreReport) -> None:
    """The table, the number of failures, and where the files are."""
    print(report.table())
    for name, entry in report.methods.items():
        if entry["n_failed"]:
            print(f"{name}: {entry['n_failed']} of {entry['n_samples']} failed", file=sys.stderr)
        for kind, count in entry["remarks"].items():
            print(f"{name}: {count} of {entry['n_samples']}: {kind}", file=sys.stderr)
    print(f"scores: {report.out / 'summary.md'}")
    if report.report:
        print(f"report: {report.report}")
    for sentence in report.violations:
        print(f"--fail-if: {sentence}", file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
