"""``regionroute bank``: photos with words and masks in every style, to pre-train a base on."""

from __future__ import annotations

import sys
from pathlib import Path

from regionroute.cli.options import add_styles, add_workers, check_workers, command_parser
from regionroute.errors import Parser, UserError

EPILOG = """examples:
  regionroute bank --labels photos/labels.jsonl --out data/bank
  regionroute bank --labels a/labels.jsonl b/labels.jsonl --styles my_styles.yaml --out data/bank
  regionroute bank --labels photos/labels.jsonl --size 320 --photos-only --out data/sharp_bank
  python -m train.pretrain.run --config nano_photos_pretrain corpus.bank=data/bank

Given again, the command makes only what is missing: add a style to the file and run it once more.
Styles of another file are added to those of the bank."""


def parser() -> Parser:
    """The arguments; building it imports nothing heavy."""
    parser = command_parser(
        "bank",
        "Make an object bank: photos with words and masks, in every style and colour, "
        "that an embedded base is pre-trained on.",
        EPILOG,
    )
    add = parser.add_argument
    add(
        "--labels",
        nargs="+",
        required=True,
        metavar="FILE",
        help="labels files with masks, as for `regionroute label`; a photo that several name has "
        "the objects of all, first those of the first file",
    )
    add(
        "--images",
        metavar="DIR",
        help="folder that file names are relative to (each labels file's)",
    )
    add("--out", required=True, metavar="DIR", help="folder of the bank")
    add_styles(parser, "photos")
    add("--size", type=int, default=160, metavar="PX", help="side of the square images (160)")
    add(
        "--test-share",
        type=float,
        default=0.1,
        metavar="P",
        help="fraction of the photos kept for validation; of 100 photos or more the same that "
        "`regionroute label` keeps (0.1)",
    )
    add(
        "--photos-only",
        action="store_true",
        help="skip styles and colours; enough to train an image encoder",
    )
    add_workers(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: arguments, None for the process's own.

    Returns:
        0.

    Raises:
        UserError: wrong arguments, no usable photo, or a folder that cannot be used.
    """
    args = parser().parse_args(argv)
    if not 32 <= args.size <= 1024:
        raise UserError(f"--size {args.size}: must be between 32 and 1024 pixels")
    if not 0 <= args.test_share < 1:
        raise UserError(f"--test-share {args.test_share}: must be at least 0 and below 1")
    if args.photos_only and (args.only is not None or args.styles != "photos"):
        raise UserError("--styles and --only choose styles, --photos-only makes none: leave it out")
    check_workers(args)
    from pseudo_labels.bank.build import make_bank

    count, skipped = make_bank(
        args.labels,
        Path(args.out),
        images=args.images,
        styles=None if args.photos_only else args.styles,
        only=args.only,
        side=args.size,
        test_share=args.test_share,
        workers=args.workers,
    )
    for reason in skipped:
        print(f"skipped: {reason}", file=sys.stderr)
    print(f"{count} photos: {args.out}")
    return 0
