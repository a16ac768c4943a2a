"""`regionroute label`: labelled photos in, training pairs out."""

import argparse
import sys
from collections import Counter
from pathlib import Path

from pseudo_labels.build import BuildReport, build
from pseudo_labels.parallel import MOST_WORKERS
from pseudo_labels.photo import BuildSettings
from pseudo_labels.stylize.registry import load_styles, packaged_styles
from regionroute.errors import Parser, UserError, command
from regionroute.io import check_output_folder

_EXAMPLE = """example:
  regionroute label --labels photos/labels.jsonl --styles painting --out data/photos

rows of the labels file, file names relative to it:
  {"image": "dog.jpg", "objects": [{"word": "dog", "mask": "dog_mask.png"}]}
  {"file": "dog.jpg", "word": "dog", "mask": "dog_mask.png"}

An interrupted run goes on where it stopped; what cannot be used is listed in OUT/rejected.jsonl.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments, None for the process's own.

    Returns:
        0 when at least one sample was made.

    Raises:
        UserError: wrong arguments or files, or not one sample could be made.
    """
    args = _parser().parse_args(argv)
    if not 0 <= args.split_val <= 1:
        raise UserError(f"--split-val is {args.split_val}: give a share from 0 to 1")
    for name in ("limit", "workers"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}: give 1 or more")
    if args.workers is not None and args.workers > MOST_WORKERS:
        raise UserError(f"--workers is {args.workers}: the most are {MOST_WORKERS}")
    check_output_folder(args.out)
    report = build(
        Path(args.labels),
        load_styles(args.styles, args.only.split(",") if args.only else None),
        Path(args.out),
        BuildSettings(size=args.size, feather=args.feather),
        test_share=args.split_val,
        limit=args.limit,
        workers=args.workers,
    )
    print(_summary(report))
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="regionroute label",
        description="Turn photos with object words and masks into training pairs: each object in "
        "each style, everything else untouched.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--labels", required=True, metavar="FILE", help="photos, words and masks")
    parser.add_argument(
        "--styles",
        default="painting",
        metavar="FILE",
        help=f"styles file, or one that comes with the package: {', '.join(packaged_styles())} "
        "(default: %(default)s)",
    )
    parser.add_argument("--only", metavar="A,B", help="only these styles of the file")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the data set")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N photos")
    parser.add_argument(
        "--size", type=int, default=512, help="longest side of the pictures (default: %(default)s)"
    )
    parser.add_argument(
        "--feather",
        type=int,
        default=0,
        metavar="PX",
        help="soft edge inside the mask, in pixels (default: %(default)s)",
    )
    parser.add_argument(
        "--split-val",
        type=float,
        default=0.2,
        metavar="SHARE",
        help='share of the photos that goes to the split "test" (default: %(default)s)',
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: by the work)")
    return parser


def _summary(report: BuildReport) -> str:
    splits = Counter(sample.split for sample in report.samples)
    photos = len({sample.provenance["photo_hash"] for sample in report.samples})
    parts = ", ".join(f"{splits[name]} {name}" for name in ("train", "test"))
    lines = [f"{len(report.samples)} samples of {photos} photos ({parts}): {report.manifest}"]
    if report.rejected:
        where = report.manifest.with_name("rejected.jsonl")
        lines.append(f"{len(report.rejected)} rejected, the reasons are in {where}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(command(main)())
