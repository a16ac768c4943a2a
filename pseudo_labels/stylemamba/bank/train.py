"""Trains a bank: one network learns what many painters do, then what their style images look like.

Learning painted targets costs a small fraction of Gram losses, whose VGG is thirty times the size
of the network. Batches depend on (seed, step) alone, so a resumed run equals an uninterrupted one.
"""

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from pseudo_labels.stylemamba.bank.config import FREE, BankConfig, BankTrainConfig
from pseudo_labels.stylemamba.bank.grams import StyleLoss
from pseudo_labels.stylemamba.bank.painter import StylePainter
from pseudo_labels.stylemamba.bank.saved import StyleBank, load_bank
from pseudo_labels.stylemamba.bank.styles import BankStyle
from pseudo_labels.stylemamba.bank.targets import Target, batches, paint_targets, plan_targets
from pseudo_labels.stylemamba.checkpoints import load_checkpoint, rewound_rows, save_checkpoint
from pseudo_labels.stylemamba.make import LOSSES_FILE
from regionroute.errors import UserError
from regionroute.files import settings_hash, write_jsonl
from regionroute.models.vgg import VggFeatures

CHECKPOINT, TARGETS = "checkpoint.safetensors", "targets"


@dataclass(frozen=True)
class BankData:
    """What a bank is trained on.

    Attributes:
        styles: of the bank.
        photos: files.
        vgg: for the second stage; None: there is none.
    """

    styles: Sequence[BankStyle]
    photos: Sequence[Path]
    vgg: VggFeatures | None = None


def train_bank(data: BankData, config: BankConfig, folder: Path) -> StyleBank:
    """Train a bank or resume its training, on the CPU, and write its folder.

    Args:
        data: styles and photos.
        config: settings.
        folder: of the result; its targets, log and checkpoint are there too.

    Raises:
        UserError: photos or a checkpoint cannot be used, or a loss is not finite.
    """
    options = config.train
    for name in ("crop", "style_crop"):
        crop = getattr(options, name) or 0
        if crop > options.side:
            raise UserError(f"train.{name} is {crop}: it must be at most train.side")
    targets = plan_targets(
        *(data.photos, data.styles, options.targets, options.side, folder / TARGETS, options.seed)
    )
    paint_targets(targets, data.styles, options.side)
    network = _first_network(data.styles, config)
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.Adam(network.parameters(), lr=options.learning_rate, betas=(0.9, 0.99))
    run = settings_hash([_frozen(options), config.painter, [style.name for style in data.styles]])
    kept = {"network": network, "average": average}
    start = load_checkpoint(folder / CHECKPOINT, kept, optimizer, run)
    total = options.steps + (options.style_steps if data.vgg else 0)
    rows = rewound_rows(folder / LOSSES_FILE, start)
    losses = _Losses(data, targets, options)
    progress = tqdm(losses.steps(start, total), initial=start, total=total, desc="train")
    for step, (photos, painted, style) in progress:
        optimizer.param_groups[0]["lr"] = learning_rate(step, options)
        terms = losses(network, photos, painted, style, step)
        loss = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(loss):
            raise UserError(f"the loss of step {step} is {loss.item()}: lower the learning rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        _follow(average, network, min(options.average, step / (step + 10)))
        progress.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
        if step % options.log_every == 0 or step == total:
            rows.append({"step": step} | {name: float(value) for name, value in terms.items()})
        if step % options.save_every == 0 or step == total:
            save_checkpoint(folder / CHECKPOINT, kept, optimizer, step, run)
            write_jsonl(folder / LOSSES_FILE, rows)
    bank = StyleBank(average.eval(), [(style.name, style.words) for style in data.styles], config)
    bank.save(folder)
    return bank


def _first_network(styles: Sequence[BankStyle], config: BankConfig) -> StylePainter:
    """New weights, or those of `train.init_from`."""
    options = config.train
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        network = StylePainter(len(styles), config.painter)
    if options.init_from is None:
        return network
    known = load_bank(options.init_from)
    names = [name for name, _ in known.styles]
    if names != [style.name for style in styles] or known.config.painter != config.painter:
        raise UserError(
            f"train.init_from: the bank {options.init_from} has other styles or sizes than this one"
        )
    network.load_state_dict(known.painter.state_dict())
    return network


def learning_rate(step: int, options: BankTrainConfig) -> float:
    """Of a step from 1: in each stage warm-up and cosine."""
    first = step <= options.steps
    number, length, peak, low = (
        (step, options.steps, options.learning_rate, 0.02)
        if first
        else (step - options.steps, options.style_steps, options.style_rate, 0.0)
    )
    if number <= options.warmup:
        return peak * number / options.warmup
    done = (number - options.warmup) / max(1, length - options.warmup)
    return peak * max(low, 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


class _Losses:
    """Batches and losses of both stages."""

    def __init__(self, data: BankData, targets: Sequence[Target], options: BankTrainConfig) -> None:
        self.options, self.targets, self.data = options, targets, data
        self._style: StyleLoss | None = None

    def steps(self, start: int, total: int) -> "itertools.chain[tuple[int, tuple[Tensor, ...]]]":
        """Numbers of the steps after `start`, with their batches."""
        options, first = self.options, min(start, self.options.steps)
        style_crop = options.style_crop or options.crop
        parts = []
        for begin, end, crop, size in (
            (first, options.steps, options.crop, options.batch),
            (max(start, options.steps), total, style_crop, options.style_batch),
        ):
            made = batches(self.targets, options.side, crop, size, options.seed, begin)
            parts.append(zip(range(begin + 1, end + 1), made, strict=False))
        return itertools.chain(*parts)

    def __call__(
        self, network: StylePainter, photos: Tensor, painted: Tensor, style: Tensor, step: int
    ) -> dict[str, Tensor]:
        """Weighted losses of a batch, by name."""
        options = self.options
        made = network(photos, network.codes[style])
        terms = {"pixels": F.l1_loss(made, painted), "edges": options.edges * _edges(made, painted)}
        if step <= options.steps:
            return terms
        assert self.data.vgg is not None
        if self._style is None:
            self._style = StyleLoss(self.data.vgg, self.data.styles, self.targets, options.side)
        terms = {name: options.pixels * value for name, value in terms.items()}
        more = self._style(made, style, photos)
        return terms | {name: getattr(options, name) * value for name, value in more.items()}


def _edges(made: Tensor, painted: Tensor) -> Tensor:
    """L1 loss of the differences of neighbours: pixels alone give blurred strokes."""
    error = made - painted
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


@torch.no_grad()
def _follow(average: StylePainter, network: StylePainter, decay: float) -> None:
    for kept, new in zip(average.parameters(), network.parameters(), strict=True):
        kept.lerp_(new, 1 - decay)


def _frozen(options: BankTrainConfig) -> dict[str, object]:
    """The settings that must not change when a run resumes."""
    return options.model_dump(exclude=set(FREE), exclude_none=True)
