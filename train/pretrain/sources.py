"""Sources of pre-training pairs: scenes that are drawn beforehand, photos composed as it goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from regionroute.attention import AttentionPlan
from regionroute.data.object_bank import ObjectBank
from regionroute.data.prompts import token_indices
from regionroute.diffusion.latents import encode_images
from regionroute.errors import UserError, nearest
from regionroute.models.codec import PatchCodec
from train.pretrain.base import HeldOut, LatentPairs
from train.pretrain.config import BaseTrainingConfig, PretrainConfig
from train.pretrain.corpus import Corpus, to_model_range
from train.pretrain.model import NanoModel
from train.pretrain.photo_pairs import Pair, PairMaker

HELD_OUT_PAIRS = 64  # a task, in validation
TOKEN = 8  # pixels of a token's side, see `PatchCodec`


class SceneSource:
    """Pairs of a corpus of scenes, whose images are encoded once.

    Args:
        cfg: batch and shares of the tasks.
        corpus: see `load_corpus`.
        codec: encodes the images.
        model: its tokenizers encode the prompts.
        seed: of batches and noise.

    Raises:
        UserError: tasks that the corpus does not hold, or no task with a share.
    """

    def __init__(
        self,
        cfg: BaseTrainingConfig,
        corpus: Corpus,
        codec: torch.nn.Module,
        model: NanoModel,
        seed: int,
    ) -> None:
        _check_tasks(cfg.tasks, corpus)
        self.cfg, self.corpus, self.seed = cfg, corpus, seed
        self.names = [name for name in cfg.tasks if name in corpus.tasks]
        self.shares = torch.tensor([cfg.tasks[name] for name in self.names])
        self.latents = _encode_corpus(codec, corpus)
        self.clip_ids, self.t5_ids = model.tokenize(corpus.prompts)

    def batches(self, start: int) -> Iterator[LatentPairs]:
        """See `PairSource`."""
        for step in range(start, self.cfg.steps):
            generator = step_generator(self.seed, step)
            rows = self._rows(generator)
            prompts = self.corpus.prompt[rows]
            yield LatentPairs(
                self.corpus.pictures[self.corpus.context[rows]].float() / 255,
                self.latents[self.corpus.context[rows]].float(),
                self.latents[self.corpus.target[rows]].float(),
                self.clip_ids[prompts],
                self.t5_ids[prompts],
                generator,
            )

    def held_out(self, step: int) -> dict[str, HeldOut]:
        """See `PairSource`; the same pairs at every step."""
        found = {}
        for task, all_rows in self.corpus.held_out.items():
            order = torch.randperm(len(all_rows), generator=torch.Generator().manual_seed(0))
            rows = all_rows[order[:HELD_OUT_PAIRS]]
            pictures = self.corpus.pictures
            found[task] = HeldOut(
                pictures[self.corpus.context[rows]].float() / 255,
                pictures[self.corpus.target[rows]].float() / 255,
                [self.corpus.prompts[number] for number in self.corpus.prompt[rows].tolist()],
            )
        return found

    def _rows(self, generator: Generator) -> Tensor:
        tasks = self.corpus.tasks
        drawn = torch.multinomial(
            self.shares, self.cfg.batch, replacement=True, generator=generator
        )
        members = [tasks[self.names[task]] for task in drawn.tolist()]
        return torch.stack(
            [rows[torch.randint(len(rows), (), generator=generator)] for rows in members]
        )


class PhotoSource:
    """Pairs composed from a bank of photos, in other processes while the model works.

    Args:
        cfg: the run's settings.
        codec: encodes the images.
        model: its tokenizers encode the prompts.

    Raises:
        UserError: a bank that cannot be used.
    """

    def __init__(self, cfg: PretrainConfig, codec: PatchCodec, model: NanoModel) -> None:
        self.cfg, self.codec, self.model = cfg, codec, model
        self.data = _Batches(cfg)
        self.validation = PairMaker(
            self.data.bank, "test", cfg.corpus.resolution, cfg.corpus.photos
        )

    def batches(self, start: int) -> Iterator[LatentPairs]:
        """See `PairSource`."""
        loader = DataLoader(
            self.data,
            batch_size=None,
            sampler=range(start, self.cfg.base.steps),
            num_workers=self.cfg.corpus.workers,
            prefetch_factor=8 if self.cfg.corpus.workers else None,
        )
        for batch in loader:
            clip_ids, t5_ids = self.model.tokenize(batch.prompts)
            context = batch.context.float() / 255
            yield LatentPairs(
                context,
                encode_images(self.codec, context),
                # At these noise levels nothing shows of what a target's features would be.
                self.codec.encode_pixels(batch.target.float() / 127.5 - 1),
                clip_ids,
                t5_ids,
                step_generator(self.cfg.seed, batch.step),
                self.codec.config.semantic_channels,
                self._painted(batch.tasks),
                self._plan(batch),
            )

    def _plan(self, batch: _Pictures) -> AttentionPlan:
        """Tokens of the named objects' words, and their masks on the token grid."""
        tokens: list[list[int]] = []
        for prompt, word in zip(batch.prompts, batch.words, strict=True):
            if not word:
                tokens.append([])
                continue
            start = prompt.index(f"the {word}") + len("the ")
            span = (start, start + len(word))
            tokens.append(token_indices(self.model.tokenizer_2, prompt, span, self.model.length))
        longest = max(1, *map(len, tokens))
        index = torch.tensor([[*row, *[-1] * (longest - len(row))] for row in tokens])
        masks = batch.masks.float() / 255
        return AttentionPlan(
            index[:, None],
            masks,
            masks.flatten(1).amax(1, keepdim=True) > 0,
            self.model.length,
            masks.shape[-2] * masks.shape[-1],
        )

    def _painted(self, tasks: list[str]) -> Tensor | None:
        wanted = self.cfg.base.perceptual_tasks
        return None if wanted is None else torch.tensor([task in wanted for task in tasks])

    def held_out(self, step: int) -> dict[str, HeldOut]:
        """See `PairSource`; the same pairs at every step of one size."""
        side = side_at(self.cfg, step)
        return {
            task: _held_out(self.validation, task, number, side)
            for number, task in enumerate(self.validation.tasks)
        }


@dataclass(frozen=True)
class _Pictures:
    """A composed batch as it travels between processes.

    Attributes:
        step: whose batch it is.
        context, target: uint8 [B,3,S,S].
        masks: uint8 [B,1,h,w], 255 times the fraction of a token that the named object covers.
        prompts, tasks, words: of each pair, see `Pair`.
    """

    step: int
    context: Tensor
    target: Tensor
    masks: Tensor
    prompts: list[str]
    tasks: list[str]
    words: list[str]


class _Batches(Dataset[_Pictures]):
    """Batch of each step, a function of (seed, step) alone."""

    def __init__(self, cfg: PretrainConfig) -> None:
        assert cfg.corpus.bank is not None
        self.cfg = cfg
        self.bank = ObjectBank(cfg.corpus.bank)
        self.maker = PairMaker(self.bank, "train", cfg.corpus.resolution, cfg.corpus.photos)

    def __getitem__(self, step: int) -> _Pictures:
        generator = step_generator(self.cfg.seed + 1, step)
        pairs = self.maker.pairs(generator, self.cfg.base.batch)
        side = side_at(self.cfg, step)
        return _Pictures(
            step,
            _stacked([pair.context for pair in pairs], side),
            _stacked([pair.target for pair in pairs], side),
            _stacked([_mask(pair) for pair in pairs], side // TOKEN),
            [pair.prompt for pair in pairs],
            [pair.task for pair in pairs],
            [pair.word for pair in pairs],
        )


def prompts_of(bank: ObjectBank) -> list[str]:
    """Texts with every word that prompts of a bank are made of."""
    words = sorted({word for row in bank.photos for word in row.words})
    looks = [row.words for row in bank.renderings.values()]
    templates = "make paint turn keep the image photo in into style unchanged all areas other area "
    templates += "highlight show where is"
    return [templates, *words, *looks]


def bank_pictures(bank: ObjectBank, count: int) -> Tensor:
    """uint8 images [N,3,S,S] of a bank, photos and renderings alike, spread over all."""
    photos = bank.split("train")
    names = ["photos", *bank.renderings]
    stride = max(1, len(photos) * len(names) // count)
    chosen = range(0, len(photos) * len(names), stride)
    pictures = [bank.image(names[i % len(names)], photos[i // len(names)]) for i in chosen]
    return (torch.stack(pictures) * 255).round().to(torch.uint8)


def side_at(cfg: PretrainConfig, step: int) -> int:
    """Side of the images of a step: coarse ones first, where the settings say so."""
    coarse = cfg.base.coarse_resolution
    if coarse is not None and step < cfg.base.coarse_share * cfg.base.steps:
        return coarse
    return cfg.corpus.resolution


def step_generator(seed: int, step: int) -> Generator:
    """Randomness of one step."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def _held_out(maker: PairMaker, task: str, number: int, side: int) -> HeldOut:
    generator = step_generator(number, 7)
    pairs: list[Pair] = [maker.pair(generator, task) for _ in range(HELD_OUT_PAIRS)]
    return HeldOut(
        _stacked([pair.context for pair in pairs], side).float() / 255,
        _stacked([pair.target for pair in pairs], side).float() / 255,
        [pair.prompt for pair in pairs],
    )


def _mask(pair: Pair) -> Tensor:
    """[1,S,S] in {0,1}; zeros where no object is named."""
    return torch.zeros_like(pair.context[:1]) if pair.mask is None else pair.mask


def _stacked(pictures: list[Tensor], side: int) -> Tensor:
    """uint8 [B,C,side,side]."""
    stack = torch.stack(pictures)
    if stack.shape[-1] != side:
        stack = F.interpolate(stack, (side, side), mode="area")
    return (stack.clamp(0, 1) * 255).round().to(torch.uint8)


@torch.no_grad()
def _encode_corpus(codec: torch.nn.Module, corpus: Corpus) -> Tensor:
    """Latents [P,C,h,w] float16 of every image."""
    parts = corpus.pictures.split(256)
    bar = tqdm(parts, desc="encoding", unit="batch")
    return torch.cat([encode_images(codec, (to_model_range(p) + 1) / 2).half() for p in bar])


def _check_tasks(tasks: dict[str, float], corpus: Corpus) -> None:
    for name in tasks:
        if name not in corpus.tasks:
            close = nearest(name, corpus.tasks)
            raise UserError(
                f"base.tasks: the corpus has no task {name!r}, the nearest is {close!r}"
            )
    if not sum(tasks.values()) > 0:
        raise UserError("base.tasks: give at least one task a share above 0")
