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
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from pseudo_labels import scenes, sprites
from pseudo_labels.compose import composite
from pseudo_labels.corpus import build_corpus
from pseudo_labels.parallel import MOST_WORKERS, default_workers, map_in_order, one_thread
from pseudo_labels.photo import SMALLEST_SIDE, Look
from pseudo_labels.scenes import HELD_OUT_SEEDS, Scene, render_scene
from pseudo_labels.stylize.registry import load_styles, packaged_styles
from regionroute.errors import Parser, UserError, command
from regionroute.io import (
    check_output_folder,
    file_hash,
    read_json,
    settings_hash,
    write_image,
    write_json,
)
from regionroute.manifest import EditSample, Region, mask_box, write_manifest
from regionroute.prompts import build_prompt

PRETRAIN_SEEDS = range(0, HELD_OUT_SEEDS.start // 2)
TRAIN_SEEDS = range(HELD_OUT_SEEDS.start // 2, HELD_OUT_SEEDS.start)
BLOCK = 1_000_000  # seeds apart that two values of --seed are, and the most scenes of one run

LARGEST_SIDE = 1024  # pixels; drawing a scene of this size takes 1.7 GB

_REVISION = 2  # raise when this module would choose other words or make other targets
_PRODUCT = re.compile(r"\d+(-.+)?\.png")
STYLE_PICTURES = "styles"  # split/style/scene.png in it
_FOLDERS = ("images", "masks", "targets", f"{STYLE_PICTURES}/*/*")
_EXAMPLE = """examples:
  regionroute scenes --out data/scenes --train 64 --test 32
  regionroute scenes --out data/pixel --train 500 --only pixel-art,line-art
  regionroute scenes --out data/pretrain --pretrain 6000
"""


@dataclass(frozen=True)
class SceneJob:
    """One scene to render: its place in its split, its seed and the split."""

    position: int
    seed: int
    split: str


@dataclass(frozen=True)
class SceneSettings:
    """What all scenes of a set have in common.

    Attributes:
        size: side of the pictures in pixels.
        looks: the styles.
        one_style: give each scene one style, in turn, instead of all.
        style_pictures: also keep the wholly restyled scenes, as examples of the styles.
    """

    size: int
    looks: tuple[Look, ...]
    one_style: bool = False
    style_pictures: bool = False

    @property
    def key(self) -> str:
        """Hash of all that decides the pictures, the drawing code included."""
        looks = [[look.entry.spec, look.stylizer.fingerprint] for look in self.looks]
        code = [_source_hash(scenes), _source_hash(sprites)]
        return settings_hash([_REVISION, self.size, looks, code])


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


def render_samples(job: SceneJob, out: Path, settings: SceneSettings) -> list[EditSample]:
    """Render one scene and its targets into `out`.

    One word of the scene is named, drawn by the scene's seed, among the half-hidden ones if it has
    any (they are rare, and known to be hard); every object of that word is
    restyled and under the mask.

    Args:
        job: the scene.
        out: folder of the data set.
        settings: size and styles.

    Returns:
        One sample a style.
    """
    with one_thread():
        scene = render_scene(job.seed, settings.size)
        hidden = [word for word in scene.words() if "occluded" in scene.flags(word)]
        words = hidden or scene.words()
        # A stream of its own: the scene's drawing must not depend on the choice of the word.
        word = words[np.random.default_rng([job.seed, 2]).integers(len(words))]
        mask = scene.mask(word)
        context, mask_file = f"images/{job.seed}.png", f"masks/{job.seed}.png"
        _write_once(out / context, scene.image)
        _write_once(out / mask_file, mask)
        looks = settings.looks
        if settings.one_style:
            looks = (looks[job.position % len(looks)],)
        samples = []
        for look in looks:
            style = look.entry.spec.name
            target = f"targets/{job.seed}-{style}.png"
            whole = out / STYLE_PICTURES / job.split / style / f"{job.seed}.png"
            wanted = settings.style_pictures and not whole.exists()
            if wanted or not (out / target).exists():
                styled = look.stylizer.stylize(scene.image, look.entry.spec)
                if wanted:
                    write_image(whole, styled)
                write_image(out / target, composite(scene.image, styled, mask))
            samples.append(_sample(job, scene, word, look, (context, mask_file, target)))
    return samples


def _sample(
    job: SceneJob, scene: Scene, word: str, look: Look, files: tuple[str, str, str]
) -> EditSample:
    spec = look.entry.spec
    prompt = build_prompt([(word, spec.words)])
    context, mask_file, target = files
    region = Region(
        object=word,
        style=spec.name,
        mask=mask_file,
        box=mask_box(scene.mask(word)),
        object_span=prompt.object_spans[0],
        style_span=prompt.style_spans[0],
    )
    return EditSample(
        id=f"scene-{job.seed}-{spec.name}",
        context=context,
        target=target,
        regions=(region,),
        prompt=prompt.text,
        split=job.split,
        flags=scene.flags(word),
        provenance={"scene_seed": job.seed, "stylizer": look.entry.stylizer},
    )


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


def _write_once(path: Path, image: Tensor) -> None:
    if not path.exists():
        write_image(path, image)


def _source_hash(module: ModuleType) -> str:
    return file_hash(str(module.__file__))


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
    looks = tuple(Look(entry, entry.build()) for entry in entries)
    jobs = scene_jobs(args.train, args.test, args.seed)
    settings = SceneSettings(args.size, looks, not args.all_styles, args.style_pictures)
    samples = build_scenes(out, jobs, settings, args.workers)
    print(f"{len(samples)} samples of {len(jobs)} scenes: {out / 'manifest.jsonl'}")
    return 0


def _check_numbers(args: argparse.Namespace) -> None:
    if not SMALLEST_SIDE <= args.size <= LARGEST_SIDE:
        raise UserError(
            f"--size is {args.size}: scenes need {SMALLEST_SIDE} to {LARGEST_SIDE} pixels a side"
        )
    for name, least in (("train", 0), ("test", 0), ("pretrain", 1), ("workers", 1)):
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
        "--style-pictures",
        action="store_true",
        help="also keep the wholly restyled scenes, in DIR/styles/SPLIT/STYLE: examples to train "
        "a style encoder on and to edit by",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: by the work)")
    return parser


if __name__ == "__main__":
    sys.exit(command(main)())
