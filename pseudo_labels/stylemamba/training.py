"""Amortised training: one fusion module for many styles.

Photos, styles and masks of a step depend only on (seed, step), so a run that resumes from its
checkpoint gives the same module as one that was not interrupted.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from pseudo_labels.stylemamba.checkpoints import (
    load_checkpoint,
    rewound_rows,
    save_checkpoint,
)
from pseudo_labels.stylemamba.config import MambaConfig, TrainConfig
from pseudo_labels.stylemamba.encoders import StyleTarget, describe
from pseudo_labels.stylemamba.fitting import as_row, new_fusion, update
from pseudo_labels.stylemamba.make import LOSSES_FILE, PREVIEW_FILE, assemble, judge, write_sheet
from pseudo_labels.stylemamba.modules.fusion import StyleFusion, decayed_parameters
from pseudo_labels.stylemamba.networks import Names, load_parts, read_images
from pseudo_labels.stylemamba.objective import Objective, Parts, Result
from pseudo_labels.stylemamba.saved import SavedStyle
from regionroute.config.io import save_config
from regionroute.errors import UserError
from regionroute.files import numbered_lines, settings_hash, write_jsonl

CHECKPOINT, PREVIEWS = "checkpoint.safetensors", "previews"
_SHOWN_STYLES = 4  # on a preview sheet


@dataclass(frozen=True)
class TrainingSet:
    """Training set: styles, photos and networks.

    Attributes:
        styles: words, or file names of images.
        pictures: whether `styles` are file names.
        images: files of the photos.
        names: names of the networks.
    """

    styles: tuple[str, ...]
    pictures: bool
    images: tuple[Path, ...]
    names: Names


@dataclass
class _Run:
    """State of a training run."""

    data: TrainingSet
    config: MambaConfig
    parts: Parts
    targets: list[StyleTarget]
    fusion: StyleFusion
    optimizer: torch.optim.Optimizer
    folder: Path
    device: torch.device

    @property
    def options(self) -> TrainConfig:
        return self.config.train


def read_styles(path: Path, pictures: bool) -> tuple[str, ...]:
    """Styles of a file, one per line; empty lines and lines that start with # are skipped.

    Args:
        path: the file.
        pictures: whether the lines are file names, relative to the file.

    Raises:
        UserError: no such file, no style, or a style is listed twice.
    """
    lines = [line.strip() for _, line in numbered_lines(path)]
    styles = [line for line in lines if not line.startswith("#")]
    if not styles:
        raise UserError(f"{path}: there are no styles, write one per line")
    for style in styles:
        if styles.count(style) > 1:
            raise UserError(f"{path}: the style '{style}' is listed twice, remove one")
    return tuple(str(path.parent / style) if pictures else style for style in styles)


def train(data: TrainingSet, config: MambaConfig, folder: Path, device: torch.device) -> SavedStyle:
    """Train or resume training, and write the folder of styles.

    Raises:
        UserError: a network, image or checkpoint cannot be used, or a loss is not finite.
    """
    options = config.train
    shown = read_images(data.images[: options.judged], options.size).to(device)
    parts = load_parts(data.names, _codec_images(data, options), data.pictures, device)
    targets = [parts.encoder.target(style) for style in data.styles]
    seen = Objective(parts, config.loss).source(shown).embeddings
    descriptions = torch.stack([_described(parts, t, seen, options) for t in targets])
    fusion = new_fusion(parts, descriptions, config, options.seed).to(device)
    run = _Run(data, config, parts, targets, fusion, _optimizer(fusion, options), folder, device)
    kept, key = {"fusion": fusion}, _run_hash(run)
    start = load_checkpoint(folder / CHECKPOINT, kept, run.optimizer, key)
    start = min(start, options.steps)
    save_config(config, folder)
    rows = rewound_rows(folder / LOSSES_FILE, start)
    todo = range(start + 1, options.steps + 1)
    progress = tqdm(todo, initial=start, total=options.steps, desc="train", unit="step")
    for step in progress:
        row, last = _step(run, step), step == options.steps
        progress.set_postfix(loss=f"{row['total']:.3f}", refresh=False)
        if last or step % options.log_every == 0:
            rows.append({"step": step} | row)
        if last or step % options.save_every == 0:
            save_checkpoint(folder / CHECKPOINT, kept, run.optimizer, step, key)
            write_jsonl(folder / LOSSES_FILE, rows)
        if last or step % options.preview_every == 0:
            first = _saved(run, descriptions[:_SHOWN_STYLES])
            sheet = folder / PREVIEWS / f"step-{step:06d}.png"
            write_sheet(sheet, judge(first, shown, parts, data.styles)[1], parts)
            fusion.train().requires_grad_(True)
    first = _saved(run, descriptions[:_SHOWN_STYLES])
    write_sheet(folder / PREVIEW_FILE, judge(first, shown, parts, data.styles)[1], parts)
    style = _saved(run, descriptions)
    scores = judge(style, shown, parts, data.styles)[0]
    style.facts.settings.update(scores=scores, steps=options.steps, photos=len(data.images))
    style.save(folder)
    return style


def learning_rate(step: int, options: TrainConfig) -> float:
    """Linear warm-up, then cosine decay to 0; steps count from 1."""
    if step <= options.warmup:
        return options.learning_rate * step / options.warmup
    done = (step - options.warmup) / max(1, options.steps - options.warmup)
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _codec_images(data: TrainingSet, options: TrainConfig) -> Tensor:
    """Evenly spaced photos, for the scale and for a codec fitted to them."""
    stride = max(1, len(data.images) // 32)
    return read_images(data.images[::stride][:32], options.size)


def _optimizer(fusion: StyleFusion, options: TrainConfig) -> torch.optim.Optimizer:
    decayed, others = decayed_parameters(fusion)
    groups = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.learning_rate)


def _saved(run: _Run, descriptions: Tensor) -> SavedStyle:
    """The current module with the first styles, as many as `descriptions`."""
    names = [target.name for target in run.targets[: len(descriptions)]]
    networks = run.data.names
    return assemble(names, run.fusion, descriptions, run.parts, networks, run.config, "train")


def _described(parts: Parts, target: StyleTarget, seen: Tensor, options: TrainConfig) -> Tensor:
    return describe(parts.encoder, target, seen, options.style_input)


def _step(run: _Run, step: int) -> dict[str, float]:
    """One optimizer step on the batch of (seed, step)."""
    options = run.options
    generator = Generator().manual_seed(options.seed * 1_000_003 + step)
    shape = (options.batch,)
    index = torch.randint(len(run.data.images), shape, generator=generator).tolist()
    styles = torch.randint(len(run.targets), shape, generator=generator).tolist()
    neutral = torch.rand(shape, generator=generator) < options.neutral
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(step, options)
    images = read_images([run.data.images[i] for i in index], options.size).to(run.device)
    result = _losses(run, images, [run.targets[i] for i in styles], neutral, generator)
    update(run.fusion, run.optimizer, result.total, options.clip, step)
    return as_row(result.terms, result.total)


def _losses(
    run: _Run,
    images: Tensor,
    targets: list[StyleTarget],
    neutral: Tensor,
    generator: Generator,
) -> Result:
    """Losses of photos [B, 3, S, S], each in its own style or, if neutral, in none."""
    objective = Objective(run.parts, run.config.loss)
    source = objective.source(images)
    rows = list(source.embeddings.split(1))
    used = [
        _unstyled(target, row) if still else target
        for target, row, still in zip(targets, rows, neutral.tolist(), strict=True)
    ]
    pairs = list(zip(used, rows, strict=True))
    directions = torch.cat([target.direction(row) for target, row in pairs])
    styles = torch.stack([_described(run.parts, target, row, run.options) for target, row in pairs])
    latents = run.fusion(source.latents, styles)
    with torch.no_grad():
        # The pair has no previous state; the midpoint replaces it.
        half = run.parts.codec.decode((source.latents + latents) / 2)
        previous = objective.embed(half, source)
    still = neutral.to(run.device)
    return objective(latents, source, directions, generator, previous=previous, neutral=still)


def _unstyled(target: StyleTarget, source: Tensor) -> StyleTarget:
    """The neutral style, with a direction of zero."""
    place = source[0] if target.neutral is None else target.neutral
    return StyleTarget("neutral", place, place)


def _run_hash(run: _Run) -> str:
    """Hash of all settings that must not change when a run resumes."""
    free = {"log_every", "save_every", "preview_every"}
    options = run.options.model_dump(exclude=free)
    networks = (run.parts.codec.facts, run.parts.encoder.facts, run.parts.vgg is None)
    photos = [file.name for file in run.data.images]
    names = [target.name for target in run.targets]
    return settings_hash([run.config.fusion, run.config.loss, options, networks, names, photos])
