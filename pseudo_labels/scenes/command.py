"""`regionroute scenes`: a data set of synthetic scenes with exact masks and exact targets.

Seeds of scenes come from three ranges that never meet: the first half of what lies below
`HELD_OUT_SEEDS` is for pre-training, the second half for training, and `HELD_OUT_SEEDS` itself for
the split "test", which is the same whatever --seed says.
"""

import argparse
import functools
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pseudo_labels.bank.corpus import build_corpus
from pseudo_labels.job import SMALLEST_SIDE, BuiltStyle
from pseudo_labels.parallel import MOST_WORKERS, default_workers, map_in_order
from pseudo_labels.scenes.draw import HELD_OUT_SEEDS
from pseudo_labels.scenes.samples import (
    STYLE_PICTURES,
    SceneJob,
    SceneSettings,
    render_samples,
)
from pseudo_labels.stylize.registry import load_styles, packaged_styles
from regionroute.data.manifest import EditSample, write_manifest
from regionroute.errors import Parser, UserError, command
from regionroute.files import check_output_folder, read_json, write_json

PRETRAIN_SEEDS = range(0, HELD_OUT_SEEDS.start // 2)
TRAIN_SEEDS = range(HELD_OUT_SEEDS.start // 2, HELD_OUT_SEEDS.start)
BLOCK = 1_000_000  # seeds apart that two values of --seed are, and the most scenes of one run

LARGEST_SIDE = 1024  # pixels; drawing a scene of this size takes 1.7 GB

_PRODUCT = re.compile(r"\d+(-.+)?\.png")
_FOLDERS = ("images", "masks", "targets", f"{STYLE_PICTURES}/*/*")
_EXAMPLE = """examples:
  regionroute scenes --out data/scenes --train 64 --test 32
  regionroute scenes --out data/pixel --train 500 --only pixel-art,line-art
  regionroute scenes --out data/pretrain --pretrain 6000
"""


def scene_jobs(train: int, test: int, seed: int = 0) -> list[SceneJob]:
    """The scenes of a set: training scenes of the seed's block, then the held-out ones.

    Args:
        train: number of training scenes.
        test: number of held-out scenes, always the first of `HELD_OUT_SEEDS`.
        seed: number of the block of `TRAIN_SEEDS`.

    Returns:
        Jobs with all seeds different.

    Raises:
        UserError: more scenes or blocks than there are seeds for.
    """
    _check_block(seed, train)
    if test > len(HELD_OUT_SEEDS):
        raise UserError(f"--test is {test}: there are {len(HELD_OUT_SEEDS)} held-out scenes")
    first = TRAIN_SEEDS.start + seed * BLOCK
    jobs = [SceneJob(i, first + i, "train") for i in range(train)]
    return jobs + [SceneJob(i, HELD_OUT_SEEDS[i], "test") for i in range(test)]


def build_scenes(
    out: Path, jobs: Sequence[SceneJob], settings: SceneSettings, workers: int | None = None
) -> list[EditSample]:
    """Render scenes and write their manifest; what an interrupted run has made is kept.

    Args:
        out: folder of the data set; it must be new, empty or an older set of scenes.
        jobs: the scenes.
        settings: size and styles.
        workers: processes, None to choose.

    Returns:
        The samples of the manifest.

    Raises:
        UserError: the folder holds something else, or a size that is too small.
    """
    _prepare(out, settings.key)
    render = functools.partial(render_samples, out=out, settings=settings)
    if workers is None:
        workers = default_workers(len(jobs), jobs_per_worker=300)
    results = map_in_order(render, jobs, workers, chunk=16)
    progress = tqdm(results, total=len(jobs), desc="scenes", unit="scene")
    samples = [sample for part in progress for sample in part]
    write_manifest(out / "manifest.jsonl", samples)
    return samples


def _prepare(out: Path, key: str) -> None:
    """An `out` in which every picture that is there belongs to these settings."""
    record, manifest = out / ".cache" / "scenes.json", out / "manifest.jsonl"
    if manifest.exists() and not record.exists():
        raise UserError(f"{out}: another data set lies here, give a new folder for the scenes")
    if record.exists() and _key(record) == key:
        return
    # Removed before the new key is written: a run killed in between starts over, none mixes both.
    manifest.unlink(missing_ok=True)
    for folder in _FOLDERS:
        for path in out.glob(f"{folder}/*.png"):
            if _PRODUCT.fullmatch(path.name):
                path.unlink()
    write_json(record, {"key": key})


def _key(record: Path) -> Any:
    content = read_json(record)
    return content.get("key") if isinstance(content, dict) else None


def _check_block(seed: int, count: int) -> None:
    blocks = len(TRAIN_SEEDS) // BLOCK
    if not 0 <= seed < blocks:
        raise UserError(f"--seed is {seed}: give a number from 0 to {blocks - 1}")
    if count > BLOCK:
        raise UserError(f"{count} scenes are too many: the most for one --seed are {BLOCK}")


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments, None for the process's own.

    Returns:
        0.

    Raises:
        UserError: wrong arguments, or a folder that cannot be used.
    """
    args = _parser().parse_args(argv)
    _check_numbers(args)
    check_output_folder(args.out)
    out = Path(args.out)
    if args.pretrain is not None:
        _check_block(args.seed, args.pretrain)
        first = PRETRAIN_SEEDS.start + args.seed * BLOCK
        options = {} if args.workers is None else {"workers": args.workers}
        print(build_corpus(out, args.pretrain, args.size, first, **options))
        return 0
    entries = load_styles(args.styles, args.only.split(",") if args.only else None)
    looks = tuple(BuiltStyle(entry, entry.build()) for entry in entries)
    jobs = scene_jobs(args.train, args.test, args.seed)
    if args.pairs > len(looks):
        raise UserError(f"--pairs is {args.pairs}: the styles file has {len(looks)} styles")
    settings = SceneSettings(
        args.size, looks, not args.all_styles, args.style_pictures, args.pairs, args.whole
    )
    samples = build_scenes(out, jobs, settings, args.workers)
    print(f"{len(samples)} samples of {len(jobs)} scenes: {out / 'manifest.jsonl'}")
    return 0


def _check_numbers(args: argparse.Namespace) -> None:
    if not SMALLEST_SIDE <= args.size <= LARGEST_SIDE:
        raise UserError(
            f"--size is {args.size}: scenes need {SMALLEST_SIDE} to {LARGEST_SIDE} pixels a side"
        )
    for name, least in (("train", 0), ("test", 0), ("pretrain", 1), ("workers", 1), ("pairs", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"--{name} is {value}: give {least} or more")
    if args.workers is not None and args.workers > MOST_WORKERS:
        raise UserError(f"--workers is {args.workers}: the most are {MOST_WORKERS}")
    if args.pretrain is None and args.train + args.test == 0:
        raise UserError("--train and --test are both 0: give at least one scene")


def _parser() -> Parser:
    parser = Parser(
        prog="regionroute scenes",
        description="Render synthetic scenes with exact masks and exactly styled targets.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the data set")
    for name, count in (("train", 64), ("test", 32)):
        parser.add_argument(
            f"--{name}", type=int, default=count, metavar="N", help=f"scenes (default: {count})"
        )
    parser.add_argument(
        "--pretrain",
        type=int,
        metavar="N",
        help="instead: N scenes with the tasks an embedded base is pre-trained on",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="other training scenes; the held-out ones stay"
    )
    parser.add_argument("--size", type=int, default=64, help="side in pixels (default: 64)")
    parser.add_argument(
        "--styles",
        default="scenes",
        metavar="FILE",
        help=f"styles file, or one that comes with the package: {', '.join(packaged_styles())} "
        "(default: %(default)s)",
    )
    parser.add_argument("--only", metavar="A,B", help="only these styles of the file")
    _add_what(parser)
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: by the work)")
    return parser


def _add_what(parser: Parser) -> None:
    """Which samples are made of a scene."""
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--all-styles",
        action="store_true",
        default=True,
        help="every scene in every style (the default)",
    )
    choice.add_argument(
        "--one-style",
        action="store_false",
        dest="all_styles",
        help="every scene in one style, the styles taking turns",
    )
    parser.add_argument(
        "--pairs",
        type=int,
        default=1,
        metavar="N",
        help="objects restyled in a sample, each in another style (default: 1)",
    )
    parser.add_argument(
        "--whole",
        action="store_true",
        help="also train on wholly restyled scenes, as many again: experts then know their styles "
        "beyond the object",
    )
    parser.add_argument(
        "--style-pictures",
        action="store_true",
        help="also keep the wholly restyled scenes, in DIR/styles/SPLIT/STYLE: examples to train "
        "a style encoder on and to edit by",
    )


if __name__ == "__main__":
    sys.exit(command(main)())
