"""The pre-training corpus in memory: images as bytes, rows as indices."""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from regionroute.data.images import read_image
from regionroute.data.manifest import load_manifest, manifest_file
from regionroute.errors import UserError
from regionroute.files import atomic_write, file_hash, settings_hash
from train.pretrain.config import CorpusConfig


@dataclass
class Corpus:
    """Pictures [P, 3, S, S] uint8 and rows that pair them.

    Attributes:
        pictures: every distinct image once.
        context, target: image index of each row, [R] each.
        prompts: distinct prompts; `prompt` [R] indexes them.
        tasks: task name -> row indices for training.
        held_out: task name -> row indices kept for validation.
    """

    pictures: Tensor
    context: Tensor
    target: Tensor
    prompts: list[str]
    prompt: Tensor
    tasks: dict[str, Tensor]
    held_out: dict[str, Tensor]


def load_corpus(cfg: CorpusConfig, cache: Path) -> Corpus:
    """Read the manifest's images once and keep them as one tensor file next to the run.

    Raises:
        UserError: the manifest holds no rows or too few scenes, a row has no task, or an image
            is not of the configured size.
    """
    manifest = load_manifest(cfg.manifest)
    if not manifest.samples:
        raise UserError(
            f"{cfg.manifest} holds no rows: build it with `regionroute scenes --pretrain`"
        )
    files = sorted({name for s in manifest.samples for name in (s.context, s.target)})
    index = {name: i for i, name in enumerate(files)}
    scenes = sorted({index[s.context] for s in manifest.samples})
    if cfg.held_out >= len(scenes):
        raise UserError(
            f"corpus.held_out={cfg.held_out}: {cfg.manifest} has {len(scenes)} scenes, keep fewer "
            "of them for validation or make more"
        )
    for sample in manifest.samples:
        if "task" not in sample.provenance:
            raise UserError(
                f"{cfg.manifest}: sample {sample.id!r} has no task in its provenance: give a "
                "corpus built with `regionroute scenes --pretrain`"
            )
    key = settings_hash([file_hash(manifest_file(cfg.manifest)), cfg.resolution])
    pictures = _load_pictures([manifest.path(f) for f in files], cfg.resolution, cache, key)
    prompts = sorted({s.prompt for s in manifest.samples})
    prompt_index = {text: i for i, text in enumerate(prompts)}
    held = set(scenes[-cfg.held_out :])
    tasks: dict[str, list[int]] = {}
    held_out: dict[str, list[int]] = {}
    for row, sample in enumerate(manifest.samples):
        group = held_out if index[sample.context] in held else tasks
        group.setdefault(str(sample.provenance["task"]), []).append(row)
    return Corpus(
        pictures=pictures,
        context=torch.tensor([index[s.context] for s in manifest.samples]),
        target=torch.tensor([index[s.target] for s in manifest.samples]),
        prompts=prompts,
        prompt=torch.tensor([prompt_index[s.prompt] for s in manifest.samples]),
        tasks={name: torch.tensor(rows) for name, rows in tasks.items()},
        held_out={name: torch.tensor(rows) for name, rows in held_out.items()},
    )


def _load_pictures(paths: list[Path], size: int, cache: Path, key: str) -> Tensor:
    if (kept := _read_cache(cache, key)) is not None:
        return kept
    chunks = [(paths[i : i + 256], size) for i in range(0, len(paths), 256)]
    with ProcessPoolExecutor(2) as pool:
        bar = tqdm(
            pool.map(_read_chunk, chunks), total=len(chunks), desc="reading pictures", unit="x256"
        )
        pictures = torch.cat([torch.from_numpy(part) for part in bar])
    with atomic_write(cache) as temporary:
        torch.save({"key": key, "pictures": pictures}, temporary)
    return pictures


def _read_cache(cache: Path, key: str) -> Tensor | None:
    """The images kept under this key; None if there are none, or others, or they are damaged."""
    if not cache.is_file():
        return None
    try:
        content = torch.load(cache, weights_only=True, mmap=True)
    # torch.load raises nearly any class on damaged files.
    except Exception:
        return None
    return content["pictures"] if isinstance(content, dict) and content["key"] == key else None


def _read_chunk(job: tuple[list[Path], int]) -> np.ndarray:
    """uint8 images [P, 3, S, S]; numpy, since sharing tensors between processes costs more."""
    torch.set_num_threads(1)
    paths, size = job
    pictures = np.empty((len(paths), 3, size, size), np.uint8)
    for i, path in enumerate(paths):
        image = read_image(path)
        if image.shape[-2:] != (size, size):
            raise UserError(
                f"{path} is {image.shape[-1]}x{image.shape[-2]} px: corpus.resolution is {size}"
            )
        pictures[i] = (image * 255).round().to(torch.uint8).numpy()
    return pictures


def to_model_range(pictures: Tensor) -> Tensor:
    """uint8 images -> float in [-1, 1]."""
    return pictures.float().div(127.5).sub(1)
