"""Data sets of synthetic scenes with exact masks and exact targets.

Seeds of scenes come from three disjoint ranges: of the seeds below `HELD_OUT_SEEDS` the first half
is for pre-training and the second half for training. `HELD_OUT_SEEDS` is for the split "test",
which does not depend on --seed.
"""

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pseudo_labels.bank.corpus import build_corpus
from pseudo_labels.job import SMALLEST_SIDE, BuiltStyle
from pseudo_labels.scenes.draw import HELD_OUT_SEEDS
from pseudo_labels.scenes.samples import (
    STYLE_IMAGES,
    SceneJob,
    SceneSettings,
    render_samples,
)
from pseudo_labels.stylize.registry import load_styles
from regionroute.data.manifest import EditSample, write_manifest
from regionroute.engines.local import default_workers, map_in_order
from regionroute.errors import UserError
from regionroute.files import check_output_folder, read_json, write_json

PRETRAIN_SEEDS = range(0, HELD_OUT_SEEDS.start // 2)
TRAIN_SEEDS = range(HELD_OUT_SEEDS.start // 2, HELD_OUT_SEEDS.start)
BLOCK = 1_000_000  # distance of the seeds of two values of --seed: the most scenes of one run

LARGEST_SIDE = 1024  # pixels; drawing a scene of this size takes 1.7 GB

_PRODUCT = re.compile(r"\d+(-.+)?\.png")
_FOLDERS = ("images", "masks", "targets", f"{STYLE_IMAGES}/*/*")


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
        raise UserError(f"--test {test}: there are {len(HELD_OUT_SEEDS)} held-out scenes")
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
        UserError: the folder holds other files, or the size is too small.
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
    """Make `out` a folder in which all images belong to these settings."""
    record, manifest = out / ".cache" / "scenes.json", out / "manifest.jsonl"
    if manifest.exists() and not record.exists():
        raise UserError(f"{out}: another data set is here, give a new folder for the scenes")
    if record.exists() and _key(record) == key:
        return
    # Removed before the new key is written, so that a run killed in between never mixes both.
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
        raise UserError(f"--seed {seed}: must be between 0 and {blocks - 1}")
    if count > BLOCK:
        raise UserError(f"{count} scenes are too many: the most for one --seed are {BLOCK}")


def make_scenes(
    out: str | Path,
    train: int,
    test: int,
    *,
    styles: str | Path = "scenes",
    only: Sequence[str] | None = None,
    seed: int = 0,
    size: int = 64,
    one_style: bool = False,
    style_images: bool = False,
    pairs: int = 1,
    whole: bool = False,
    workers: int | None = None,
) -> tuple[Path, int]:
    """Draw a set of scenes; run again, it draws only what is missing.

    Args:
        out: folder of the data set.
        train: number of training scenes.
        test: number of held-out scenes, which do not depend on `seed`.
        styles: styles file, or the name of a packaged one.
        only: these styles of the file, None for all.
        seed: of the training scenes.
        size: side of the images in pixels.
        one_style: every scene in one style, in turn, instead of in all.
        style_images: also write whole restyled scenes, as style references.
        pairs: objects restyled in a sample, each in another style.
        whole: add training samples of whole restyled scenes.
        workers: processes, None to choose by the amount of work.

    Returns:
        The manifest and its number of samples.

    Raises:
        UserError: numbers out of range, or a folder that cannot be used.
    """
    _check_size(size)
    check_output_folder(out)
    entries = load_styles(styles, only)
    built = tuple(BuiltStyle(entry, entry.build()) for entry in entries)
    if pairs > len(built):
        raise UserError(f"--pairs {pairs}: the styles file has {len(built)} styles")
    jobs = scene_jobs(train, test, seed)
    settings = SceneSettings(size, built, one_style, style_images, pairs, whole)
    samples = build_scenes(Path(out), jobs, settings, workers)
    return Path(out) / "manifest.jsonl", len(samples)


def build_pretraining(
    out: str | Path, scenes: int, size: int = 64, seed: int = 0, workers: int = 2
) -> Path:
    """Draw scenes with the tasks that an embedded base is pre-trained on.

    Returns:
        The manifest.

    Raises:
        UserError: numbers out of range, or a folder that cannot be used.
    """
    _check_size(size)
    check_output_folder(out)
    _check_block(seed, scenes)
    first = PRETRAIN_SEEDS.start + seed * BLOCK
    return build_corpus(Path(out), scenes, size, first, workers)


def _check_size(size: int) -> None:
    if not SMALLEST_SIDE <= size <= LARGEST_SIDE:
        raise UserError(
            f"--size {size}: scenes need {SMALLEST_SIDE} to {LARGEST_SIDE} pixels per side"
        )
