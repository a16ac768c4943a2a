"""Pairs for pre-training, composed from a bank of photos.

Images show several objects, so that words must be distinguished; what the instruction asks for is
composed from the renderings in the same way. A pair depends on its generator alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Generator, Tensor

from regionroute.data.object_bank import PHOTO, ObjectBank
from regionroute.errors import UserError
from train.pretrain.colours import in_other_colours
from train.pretrain.compositions import Composer, Layer, one_of, visible
from train.pretrain.config import PhotoPairsConfig, PhotoTask

COPY_PROMPTS = ("keep the image unchanged", "keep all areas unchanged", "keep the photo unchanged")
STYLE_PROMPTS = (
    "make the image in {look} style",
    "make the photo in {look} style",
    "turn the image into {look} style",
)
TINT_PROMPTS = ("make the image {look}", "paint the photo {look}", "turn the image {look}")
RECOLOUR_PROMPTS = (
    "make the {word} {look}, keep other area unchanged",
    "paint the {word} {look}, keep other area unchanged",
    "turn the {word} {look}, keep other area unchanged",
)
HIGHLIGHT_PROMPTS = (
    "highlight the {word}",
    "highlight the {word} in the image",
    "show where the {word} is",
)
TASKS: tuple[PhotoTask, ...] = get_args(PhotoTask)


@dataclass(frozen=True)
class Pair:
    """One instruction with its images.

    Attributes:
        context, target: [3,S,S] in [0,1].
        prompt: the instruction.
        task: one of `TASKS`.
        word: the object it names; empty where it names none.
        mask: [1,S,S] in {0,1}, where that object is; empty where it is absent.
    """

    context: Tensor
    target: Tensor
    prompt: str
    task: str
    word: str = ""
    mask: Tensor | None = None


class PairMaker(Composer):
    """Composes pairs from the photos of one split; see `Composer` for the arguments.

    Raises:
        UserError: the split holds no photo, or the bank is too small or of photos only.
    """

    def __init__(self, bank: ObjectBank, split: str, side: int, cfg: PhotoPairsConfig) -> None:
        super().__init__(bank, split, side, cfg)
        if not bank.names("colour"):
            raise UserError(
                f"{bank.folder}: this bank holds photos only, run `regionroute bank` without "
                "--photos-only"
            )
        self.tasks = list(cfg.tasks)
        self.task_shares = torch.tensor([cfg.tasks[task] for task in self.tasks])

    def pairs(self, generator: Generator, count: int) -> list[Pair]:
        """Pairs of a batch.

        An object that is named may be followed by a twin: the same image, another word, of
        another object in it or of none. What the two have in common then says nothing about the
        word, so that it must be read.
        """
        found: list[Pair] = []
        while len(found) < count:
            layers = self.layers(generator)
            pair = self._pair(self._task(generator), layers, generator)
            found.append(pair)
            twin = float(torch.rand((), generator=generator)) < self.cfg.twins
            if pair.task in ("recolour", "highlight") and twin and len(found) < count:
                others = [word for word in self._large(layers) if word != pair.word]
                found.append(self._named(pair.task, layers, others, generator))
        return found

    def pair(self, generator: Generator, task: str | None = None) -> Pair:
        """One pair; its task is drawn too unless given."""
        layers = self.layers(generator)
        return self._pair(task or self._task(generator), layers, generator)

    def _task(self, generator: Generator) -> str:
        return self.tasks[int(torch.multinomial(self.task_shares, 1, generator=generator))]

    def _pair(self, task: str, layers: list[Layer], generator: Generator) -> Pair:
        if task in ("recolour", "highlight", "absent"):
            words = [] if task == "absent" else self._large(layers)
            return self._named(task, layers, words, generator)
        context = self.compose(PHOTO, layers)
        if task == "copy":
            return Pair(context, context, one_of(COPY_PROMPTS, generator), task)
        look = one_of(self.bank.names("style" if task == "style" else "colour"), generator)
        wording = one_of(STYLE_PROMPTS if task == "style" else TINT_PROMPTS, generator)
        prompt = wording.format(look=self.bank.renderings[look].words)
        return Pair(context, self.compose(look, layers), prompt, task)

    def _large(self, layers: list[Layer]) -> list[str]:
        """Words of the objects that are large enough to be named, at least the largest."""
        areas = {word: float(mask.mean()) for word, mask in visible(layers).items()}
        found = [word for word, area in areas.items() if area >= self.cfg.least_area]
        return found or [max(areas, key=lambda word: areas[word])]

    def _named(
        self, task: str, layers: list[Layer], words: list[str], generator: Generator
    ) -> Pair:
        """One of the words recoloured or highlighted; without words one that is not there.

        A highlighted object is white on black: so the error depends only on its location.
        """
        seen = visible(layers)
        if not words and task == "recolour":
            task = "absent"
        # A bank of one word has none that could be absent: any will do where nothing is done.
        words = words or [word for word in self.words if word not in seen] or ["unicorn"]
        word = one_of(words, generator)
        mask = seen.get(word, torch.zeros(1, self.side, self.side))
        context = self.compose(PHOTO, layers)
        if task == "highlight":
            prompt = one_of(HIGHLIGHT_PROMPTS, generator).format(word=word)
            if float(torch.rand((), generator=generator)) < self.cfg.other_colours:
                context = in_other_colours(context[None], generator)[0]
            return Pair(context, mask.expand_as(context), prompt, task, word, mask)
        look = one_of(self.bank.names("colour"), generator)
        painted = self.compose(look, layers)
        prompt = one_of(RECOLOUR_PROMPTS, generator).format(
            word=word, look=self.bank.renderings[look].words
        )
        return Pair(context, mask * painted + (1 - mask) * context, prompt, task, word, mask)
