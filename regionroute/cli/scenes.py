"""``regionroute scenes``: draw training scenes with exact masks and exact targets."""

from __future__ import annotations

from pathlib import Path

from regionroute.cli.options import (
    add_renamed,
    add_seed,
    add_styles,
    add_workers,
    check_least,
    check_workers,
    command_parser,
    given,
)
from regionroute.errors import Parser, UserError

EPILOG = """examples:
  regionroute scenes --out data/scenes --train 64 --test 32
  regionroute scenes --out data/pixel --train 500 --only pixel-art,line-art
  regionroute scenes --out data/pretrain --pretrain 6000

The test scenes are the same for every --seed, and no seed draws them for training."""


def parser() -> Parser:
    """The arguments; building it imports nothing heavy."""
    parser = command_parser(
        "scenes", "Draw synthetic scenes with exact masks and exactly styled targets.", EPILOG
    )
    add = parser.add_argument
    add("--out", required=True, metavar="DIR", help="folder of the data set")
    add("--train", type=int, default=64, metavar="N", help="training scenes (64)")
    add("--test", type=int, default=32, metavar="N", help="held-out scenes (32)")
    add(
        "--pretrain",
        type=int,
        metavar="N",
        help="draw instead N scenes with the tasks that an embedded base is pre-trained on",
    )
    add_seed(parser, "the training scenes")
    add("--size", type=int, default=64, metavar="PX", help="side of the images (64)")
    add_styles(parser, "scenes")
    _add_what(parser)
    add_workers(parser)
    return parser


def _add_what(parser: Parser) -> None:
    """Which samples are made of a scene."""
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--all-styles",
        action="store_true",
        default=True,
        help="make every scene in every style (the default)",
    )
    choice.add_argument(
        "--one-style",
        action="store_false",
        dest="all_styles",
        help="make every scene in one style; the styles take turns",
    )
    parser.add_argument(
        "--pairs",
        type=int,
        default=1,
        metavar="N",
        help="objects restyled in a sample, each in another style (1)",
    )
    parser.add_argument(
        "--whole",
        action="store_true",
        help="add as many wholly restyled scenes: experts then know their styles beyond the object",
    )
    parser.add_argument(
        "--style-images",
        action="store_true",
        help="keep the wholly restyled scenes too, in OUT/styles/SPLIT/STYLE: examples to train a "
        "style encoder on and to edit by",
    )
    add_renamed(parser, "--style-pictures", "--style-images", nargs=0, const=True)


def main(argv: list[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: arguments, None for the process's own.

    Returns:
        0.

    Raises:
        UserError: wrong arguments, or a folder that cannot be used.
    """
    args = parser().parse_args(argv)
    check_least(args, {"train": 0, "test": 0, "pretrain": 1, "pairs": 1})
    check_workers(args)
    if args.pretrain is None and args.train + args.test == 0:
        raise UserError("--train and --test are both 0: give at least one scene")
    from pseudo_labels.scenes.build import build_pretraining, make_scenes

    if args.pretrain is not None:
        options = given(args, "workers")
        print(build_pretraining(args.out, args.pretrain, args.size, args.seed, **options))
        return 0
    manifest, count = make_scenes(
        args.out,
        args.train,
        args.test,
        styles=args.styles,
        only=args.only,
        seed=args.seed,
        size=args.size,
        one_style=not args.all_styles,
        style_images=args.style_images,
        pairs=args.pairs,
        whole=args.whole,
        workers=args.workers,
    )
    print(f"{count} samples of {args.train + args.test} scenes: {Path(manifest)}")
    return 0
