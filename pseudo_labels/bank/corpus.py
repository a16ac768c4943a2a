"""The pre-training corpus of an embedded base, as a manifest on disk.

Scenes with the tasks of `pseudo_labels.bank.tasks`; optionally photos with object words and masks
go through the same tasks. Every row is an `EditSample` without regions; `provenance["task"]` names
its task. Rows of one image share its context file.
"""

import functools
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from pseudo_labels.bank.tasks import pretraining_pairs
from pseudo_labels.job import write_once
from pseudo_labels.scenes.draw import HELD_OUT_SEEDS, render_scene
from regionroute.data.manifest import FILE_NAME, EditSample, write_manifest
from regionroute.errors import UserError
from regionroute.files import read_jsonl

SCENES_PER_FOLDER = 500


def build_corpus(out: Path, scenes: int, size: int, first_seed: int = 0, workers: int = 2) -> Path:
    """Render scenes and all their pre-training tasks into `out` and write its manifest.

    Scenes already on disk are kept, so an interrupted run resumes.

    Args:
        out: folder of the corpus.
        scenes: number of scenes; seeds are `first_seed` onwards.
        size: side of the images in pixels.
        first_seed: first scene seed.
        workers: number of processes.

    Returns:
        Path of `manifest.jsonl`.

    Raises:
        UserError: the seeds reach the held-out range, or the folder holds another data set.
    """
    if first_seed + scenes > HELD_OUT_SEEDS.start:
        raise UserError(
            f"--seed {first_seed} with {scenes} scenes reaches the held-out seeds "
            f"({HELD_OUT_SEEDS.start} and above): use a smaller seed"
        )
    _check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    seeds = range(first_seed, first_seed + scenes)
    render = functools.partial(_render_rows, out=out, size=size)
    with ProcessPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        chunks = tqdm(
            pool.map(render, seeds, chunksize=16), total=scenes, desc="corpus", unit="scene"
        )
        samples = [sample for rows in chunks for sample in rows]
    manifest = out / FILE_NAME
    write_manifest(manifest, samples)
    return manifest


def _check_folder(out: Path) -> None:
    manifest = out / FILE_NAME
    if not manifest.exists():
        return
    rows = read_jsonl(manifest)
    if not all(
        isinstance(row.get("provenance"), dict) and "task" in row["provenance"] for row in rows
    ):
        raise UserError(f"{out}: this folder holds another data set, give a new folder")


def _render_rows(seed: int, out: Path, size: int) -> list[EditSample]:
    scene = render_scene(seed, size)
    rng = np.random.default_rng([seed, 1])
    folder = f"{seed // SCENES_PER_FOLDER:05d}"
    (out / folder).mkdir(exist_ok=True)
    context = f"{folder}/{seed}.png"
    write_once(out / context, scene.image)
    samples = []
    for index, pair in enumerate(pretraining_pairs(scene, rng)):
        target = context
        if pair.target is not None:
            target = f"{folder}/{seed}-{index}.png"
            write_once(out / target, pair.target)
        samples.append(
            EditSample(
                id=f"{seed}-{index}-{pair.task}",
                context=context,
                target=target,
                regions=(),
                prompt=pair.prompt,
                provenance={"task": pair.task, "scene_seed": seed},
            )
        )
    return samples
