"""`regionroute bank`: photos with words and masks, in every style and colour, to pre-train on."""

import argparse
import sys
from pathlib import Path

from pseudo_labels.bank.build import build_bank
from pseudo_labels.job import BuiltStyle
from pseudo_labels.parallel import MOST_WORKERS
from pseudo_labels.segment.given import LabelledPhoto, read_labels
from pseudo_labels.stylize.registry import load_styles, packaged_styles
from regionroute.errors import Parser, UserError, command
from regionroute.files import check_output_folder

_EXAMPLE = """examples:
  regionroute bank --labels photos/labels.jsonl --out data/bank
  regionroute bank --labels a/labels.jsonl b/labels.jsonl --styles my_styles.yaml --out data/bank
  python train/pretrain/run.py --config configs/nano_photos_pretrain.yaml corpus.bank=data/bank

Made again, the command makes only what is missing: add a style to the file and run it once more.
Styles of another file come beside those that are there.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments, None for the process's own.

    Returns:
        0.

    Raises:
        UserError: wrong arguments, no usable photo, or a folder that cannot be used.
    """
    args = _parser().parse_args(argv)
    _check(args)
    check_output_folder(args.out)
    entries = load_styles(args.styles, args.only.split(",") if args.only else None)
    looks = [BuiltStyle(entry, entry.build()) for entry in entries]
    photos: list[LabelledPhoto] = []
    for path in args.labels:
        found, rejected = read_labels(path)
        photos += found
        for item in rejected:
            print(f"left out: {item.reason}", file=sys.stderr)
    if not photos:
        raise UserError(f"{args.labels[0]}: this labels file names no photo")
    count, left_out = build_bank(
        photos, looks, Path(args.out), args.size, args.test_share, args.workers
    )
    for reason in left_out:
        print(f"left out: {reason}", file=sys.stderr)
    print(f"{count} photos in {len(looks)} styles: {args.out}")
    return 0


def _check(args: argparse.Namespace) -> None:
    if not 32 <= args.size <= 1024:
        raise UserError(f"--size is {args.size}: give 32 to 1024 pixels")
    if not 0 <= args.test_share < 1:
        raise UserError(f"--test-share is {args.test_share}: give a share from 0 to below 1")
    if args.workers is not None and not 1 <= args.workers <= MOST_WORKERS:
        raise UserError(f"--workers is {args.workers}: give 1 to {MOST_WORKERS}")


def _parser() -> Parser:
    parser = Parser(
        prog="regionroute bank",
        description="Photos with words and masks, in every style and colour: what an embedded base "
        "is pre-trained on.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--labels",
        nargs="+",
        required=True,
        metavar="FILE",
        help="labels files with masks, as for `regionroute label`",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the bank")
    parser.add_argument(
        "--styles",
        default="photos",
        metavar="FILE",
        help=f"styles file, or one that comes with the package: {', '.join(packaged_styles())} "
        "(default: %(default)s)",
    )
    parser.add_argument("--only", metavar="A,B", help="only these styles of the file")
    parser.add_argument(
        "--size", type=int, default=160, help="side of the squares in pixels (default: 160)"
    )
    parser.add_argument(
        "--test-share",
        type=float,
        default=0.1,
        help="share of the photos kept for validation, the same photos that `regionroute label` "
        "keeps (default: 0.1)",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: by the work)")
    return parser


if __name__ == "__main__":
    sys.exit(command(main)())
