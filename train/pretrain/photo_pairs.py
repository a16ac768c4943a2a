"""Pairs for pre-training, composed from a bank of photos.

A pair starts from a photo and may get objects of other photos pasted over it, so that words must
be distinguished in one image; what the instruction asks for is composed from the renderings in the
same way. A pair depends on its generator alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Generator, Tensor

from regionroute.data.object_bank import PHOTO, ObjectBank
from regionroute.errors import UserError
from train.pretrain.colours import in_other_colours
from train.pretrain.config import PhotoPairsConfig, PhotoTask
from train.pretrain.placement import Placement, put

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
    """

    context: Tensor
    target: Tensor
    prompt: str
    task: str
    word: str = ""


@dataclass(frozen=True)
class Layer:
    """A photo of the bank, placed in an image.

    Attributes:
        photo: its number.
        cover: [1,S,S] in [0,1], where it lies over what is below.
        objects: word -> mask [1,S,S] of its objects as placed, before others cover them.
        place: how its pixels get there, for `put`.
    """

    photo: int
    cover: Tensor
    objects: dict[str, Tensor]
    place: Placement


class PairMaker:
    """Composes pairs from the photos of one split.

    Args:
        bank: the photos.
        split: "train" or "test".
        side: of the images in pixels, at most the bank's.
        cfg: what pairs are made of.

    Raises:
        UserError: the split holds no photo, the bank is too small, or an unknown task.
    """

    def __init__(self, bank: ObjectBank, split: str, side: int, cfg: PhotoPairsConfig) -> None:
        self.bank, self.side, self.cfg = bank, side, cfg
        self.members = bank.split(split)
        if not self.members:
            raise UserError(f"{bank.folder}: the split {split!r} of this bank holds no photo")
        if side > bank.side:
            raise UserError(
                f"{bank.folder}: its squares are of {bank.side} px, corpus.resolution is {side}"
            )
        counts: dict[str, int] = {}
        for photo in self.members:
            for word in bank.photos[photo].words:
                counts[word] = counts.get(word, 0) + 1
        # Between "every photo alike" and "every word alike": the bank has hundreds of cats.
        self.weights = torch.tensor(
            [
                max(counts[word] ** -cfg.word_balance for word in bank.photos[photo].words)
                for photo in self.members
            ]
        )
        self.words = sorted(counts)
        self.tasks = list(cfg.tasks)
        self.shares = torch.tensor([cfg.tasks[task] for task in self.tasks])

    def pairs(self, generator: Generator, count: int) -> list[Pair]:
        """Pairs of a batch.

        An object that is named may be followed by a twin: the same image, another word, of
        another object in it or of none. What the two have in common then says nothing about the
        word, so that it must be read.
        """
        found: list[Pair] = []
        while len(found) < count:
            layers = self._layers(generator)
            pair = self._pair(self._task(generator), layers, generator)
            found.append(pair)
            twin = float(torch.rand((), generator=generator)) < self.cfg.twins
            if pair.task in ("recolour", "highlight") and twin and len(found) < count:
                others = [word for word in self._large(layers) if word != pair.word]
                found.append(self._named(pair.task, layers, others, generator))
        return found

    def pair(self, generator: Generator, task: str | None = None) -> Pair:
        """One pair; its task is drawn too unless given."""
        layers = self._layers(generator)
        return self._pair(task or self._task(generator), layers, generator)

    def _task(self, generator: Generator) -> str:
        return self.tasks[int(torch.multinomial(self.shares, 1, generator=generator))]

    def _pair(self, task: str, layers: list[Layer], generator: Generator) -> Pair:
        if task in ("recolour", "highlight", "absent"):
            words = [] if task == "absent" else self._large(layers)
            return self._named(task, layers, words, generator)
        context = self._compose(PHOTO, layers)
        if task == "copy":
            return Pair(context, context, _one_of(COPY_PROMPTS, generator), task)
        look = _one_of(self.bank.names("style" if task == "style" else "colour"), generator)
        wording = _one_of(STYLE_PROMPTS if task == "style" else TINT_PROMPTS, generator)
        prompt = wording.format(look=self.bank.renderings[look].words)
        return Pair(context, self._compose(look, layers), prompt, task)

    def _large(self, layers: list[Layer]) -> list[str]:
        """Words of the objects that are large enough to be named, at least the largest."""
        areas = {word: float(mask.mean()) for word, mask in _visible(layers).items()}
        found = [word for word, area in areas.items() if area >= self.cfg.least_area]
        return found or [max(areas, key=lambda word: areas[word])]

    def _named(
        self, task: str, layers: list[Layer], words: list[str], generator: Generator
    ) -> Pair:
        """One of the words recoloured or highlighted; without words one that is not there.

        A highlighted object is white on black: so the error depends only on its location.
        """
        visible = _visible(layers)
        if not words and task == "recolour":
            task = "absent"
        # A bank of one word has none that could be absent: any will do where nothing is done.
        words = words or [word for word in self.words if word not in visible] or ["unicorn"]
        word = _one_of(words, generator)
        mask = visible.get(word, torch.zeros(1, self.side, self.side))
        context = self._compose(PHOTO, layers)
        if task == "highlight":
            prompt = _one_of(HIGHLIGHT_PROMPTS, generator).format(word=word)
            if float(torch.rand((), generator=generator)) < self.cfg.other_colours:
                context = in_other_colours(context[None], generator)[0]
            return Pair(context, mask.expand_as(context), prompt, task, word)
        look = _one_of(self.bank.names("colour"), generator)
        painted = self._compose(look, layers)
        prompt = _one_of(RECOLOUR_PROMPTS, generator).format(
            word=word, look=self.bank.renderings[look].words
        )
        return Pair(context, mask * painted + (1 - mask) * context, prompt, task, word)

    def _layers(self, generator: Generator) -> list[Layer]:
        """A photo and, over it, objects of others with words of their own."""
        chosen = [self.members[int(torch.multinomial(self.weights, 1, generator=generator))]]
        pasted = int(torch.multinomial(torch.tensor(self.cfg.pasted), 1, generator=generator))
        layers = [self._whole(chosen[0], generator)]
        for _ in range(pasted):
            photo = self.members[int(torch.multinomial(self.weights, 1, generator=generator))]
            words = {word for layer in layers for word in layer.objects}
            layer = self._cut_out(photo, generator)
            if layer is not None and not words & set(layer.objects):
                layers.append(layer)
        return layers

    def _whole(self, photo: int, generator: Generator) -> Layer:
        side, crop = self.side, self._crop(generator)
        top, left = (_below(self.bank.side - crop + 1, generator) for _ in range(2))
        place = Placement(
            (top, top + crop), (left, left + crop), _flip(generator), (0, 0, side, side)
        )
        masks = (put(self.bank.masks(photo), place, side) > 0.5).float()
        words = self.bank.photos[photo].words
        return Layer(photo, torch.ones(1, side, side), _by_word(words, masks), place)

    def _crop(self, generator: Generator) -> int:
        """Side of the window of a photo that an image shows."""
        widest = min(self.bank.side, round(self.side / self.cfg.least_scale))
        return self.side + _below(widest - self.side + 1, generator)

    def _cut_out(self, photo: int, generator: Generator) -> Layer | None:
        """One object of a photo, somewhere in the image; None if it is unfit to be cut out."""
        masks = self.bank.masks(photo)
        number = _below(len(masks), generator)
        mask = masks[number : number + 1]
        rows = mask[0].any(1).nonzero().flatten()
        columns = mask[0].any(0).nonzero().flatten()
        box = (int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)
        height, width = box[1] - box[0], box[3] - box[2]
        low, high = self.cfg.pasted_size
        longer = (low + (high - low) * float(torch.rand((), generator=generator))) * self.side
        scale = longer / max(height, width)
        size = (max(4, round(height * scale)), max(4, round(width * scale)))
        top, left = (_below(self.side - length + 1, generator) for length in size)
        if mask.mean() < self.cfg.least_area:
            return None
        place = Placement(box[:2], box[2:], _flip(generator), (top, left, *size))
        cover = put(mask, place, self.side)
        word = self.bank.photos[photo].words[number]
        return Layer(photo, cover, {word: (cover > 0.5).float()}, place)

    def _compose(self, rendering: str, layers: list[Layer]) -> Tensor:
        picture = torch.zeros(3, self.side, self.side)
        for layer in layers:
            pixels = put(self.bank.image(rendering, layer.photo), layer.place, self.side)
            picture = layer.cover * pixels + (1 - layer.cover) * picture
        return picture


def _visible(layers: list[Layer]) -> dict[str, Tensor]:
    """Word -> mask of what is left of its object under later layers."""
    visible: dict[str, Tensor] = {}
    for number, layer in enumerate(layers):
        hidden = torch.zeros_like(layer.cover)
        for later in layers[number + 1 :]:
            hidden = torch.maximum(hidden, (later.cover > 0.5).float())
        for word, mask in layer.objects.items():
            visible[word] = mask * (1 - hidden)
    return visible


def _by_word(words: list[str], masks: Tensor) -> dict[str, Tensor]:
    """Masks of the same word together."""
    found: dict[str, Tensor] = {}
    for word, mask in zip(words, masks, strict=True):
        found[word] = torch.maximum(found[word], mask[None]) if word in found else mask[None]
    return found


def _below(limit: int, generator: Generator) -> int:
    return int(torch.randint(max(1, limit), (), generator=generator))


def _flip(generator: Generator) -> bool:
    return bool(torch.rand((), generator=generator) < 0.5)


def _one_of(options: Any, generator: Generator) -> Any:
    return options[_below(len(options), generator)]
