"""Images composed from an object bank: a photo, photos side by side, objects pasted over them.

Every rendering of a photo (a style, a colour) has the same masks, so a composition of renderings is
the exact target of the same composition of photos. A composition depends on its generator alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from regionroute.data.object_bank import ObjectBank
from regionroute.errors import UserError
from train.pretrain.config import PhotoPairsConfig
from train.pretrain.placement import Placement, put

GRIDS = {"photo": (1, 1), "halves": (1, 2), "mosaic": (2, 2)}  # layout -> rows, columns
TRIES = 4  # to find a photo whose words are not in the image yet


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


class Composer:
    """Composes images from the photos of one split.

    Args:
        bank: the photos.
        split: "train" or "test".
        side: of the images in pixels, at most the bank's.
        cfg: what images are made of.

    Raises:
        UserError: the split holds no photo, or the bank is too small.
    """

    def __init__(self, bank: ObjectBank, split: str, side: int, cfg: PhotoPairsConfig) -> None:
        self.bank, self.split, self.side, self.cfg = bank, split, side, cfg
        self.members = bank.split(split)
        if not self.members:
            raise UserError(
                f"{bank.folder}: the split {split!r} of this bank holds no photo: make one of more "
                "photos, or with a larger --test-share"
            )
        if side > bank.side:
            raise UserError(
                f"{bank.folder}: its squares are of {bank.side} px, images of {side} px are to be "
                f"composed of them: make a bank with --size {side} or more"
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
        self.layouts = list(cfg.layouts)
        self.shares = torch.tensor([cfg.layouts[name] for name in self.layouts])

    def layers(self, generator: Generator) -> list[Layer]:
        """Photos side by side and, over them, objects of others; each word occurs once."""
        layout = self.layouts[int(torch.multinomial(self.shares, 1, generator=generator))]
        rows, columns = GRIDS[layout]
        if rows * columns == 1:
            layers = [self._whole(self._draw(generator), generator)]
        else:
            layers = []
            for row in range(rows):
                for column in range(columns):
                    layers.append(self._tile(layers, (rows, columns), (row, column), generator))
        pasted = int(torch.multinomial(torch.tensor(self.cfg.pasted), 1, generator=generator))
        for _ in range(pasted if layout == "photo" else 0):
            layer = self._cut_out(self._draw(generator), generator)
            if layer is not None and not _words(layers) & set(layer.objects):
                layers.append(layer)
        return layers

    def compose(self, rendering: str, layers: list[Layer]) -> Tensor:
        """Pixels [3,S,S] in [0,1] of the layers in one rendering of their photos."""
        image = torch.zeros(3, self.side, self.side)
        for layer in layers:
            pixels = put(self.bank.image(rendering, layer.photo), layer.place, self.side)
            image = layer.cover * pixels + (1 - layer.cover) * image
        return image

    def _draw(self, generator: Generator) -> int:
        return self.members[int(torch.multinomial(self.weights, 1, generator=generator))]

    def _whole(self, photo: int, generator: Generator) -> Layer:
        side, crop = self.side, self._crop(generator)
        top, left = (below(self.bank.side - crop + 1, generator) for _ in range(2))
        place = Placement(
            (top, top + crop), (left, left + crop), flip(generator), (0, 0, side, side)
        )
        return self._placed(photo, place)

    def _tile(
        self,
        before: list[Layer],
        grid: tuple[int, int],
        place: tuple[int, int],
        generator: Generator,
    ) -> Layer:
        """A photo in one cell of a grid of rows and columns, cropped to the cell's shape."""
        height, width = (self.side // count for count in grid)
        used = _words(before)
        for _ in range(TRIES):
            photo = self._draw(generator)
            if not used & set(self.bank.photos[photo].words):
                break
        scale = self.bank.side / max(height, width)
        crop = round(height * scale), round(width * scale)
        top, left = (below(self.bank.side - length + 1, generator) for length in crop)
        window = place[0] * height, place[1] * width, height, width
        return self._placed(
            photo, Placement((top, top + crop[0]), (left, left + crop[1]), flip(generator), window)
        )

    def _placed(self, photo: int, place: Placement) -> Layer:
        top, left, height, width = place.window
        cover = torch.zeros(1, self.side, self.side)
        cover[:, top : top + height, left : left + width] = 1
        masks = (put(self.bank.masks(photo), place, self.side) > 0.5).float()
        return Layer(photo, cover, _by_word(self.bank.photos[photo].words, masks), place)

    def _crop(self, generator: Generator) -> int:
        """Side of the window of a photo that an image shows."""
        widest = min(self.bank.side, round(self.side / self.cfg.least_scale))
        return self.side + below(widest - self.side + 1, generator)

    def _cut_out(self, photo: int, generator: Generator) -> Layer | None:
        """One object of a photo, somewhere in the image; None if it is unfit to be cut out."""
        masks = self.bank.masks(photo)
        number = below(len(masks), generator)
        mask = masks[number : number + 1]
        rows = mask[0].any(1).nonzero().flatten()
        columns = mask[0].any(0).nonzero().flatten()
        box = (int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1)
        height, width = box[1] - box[0], box[3] - box[2]
        low, high = self.cfg.pasted_size
        longer = (low + (high - low) * float(torch.rand((), generator=generator))) * self.side
        scale = longer / max(height, width)
        size = (max(4, round(height * scale)), max(4, round(width * scale)))
        top, left = (below(self.side - length + 1, generator) for length in size)
        if mask.mean() < self.cfg.least_area:
            return None
        place = Placement(box[:2], box[2:], flip(generator), (top, left, *size))
        cover = put(mask, place, self.side)
        word = self.bank.photos[photo].words[number]
        return Layer(photo, cover, {word: (cover > 0.5).float()}, place)


def visible(layers: list[Layer]) -> dict[str, Tensor]:
    """Word -> mask [1,S,S] of what is left of its object under later layers."""
    found: dict[str, Tensor] = {}
    for number, layer in enumerate(layers):
        hidden = torch.zeros_like(layer.cover)
        for later in layers[number + 1 :]:
            hidden = torch.maximum(hidden, (later.cover > 0.5).float())
        for word, mask in layer.objects.items():
            seen = mask * (1 - hidden)
            # Two tiles may show the same word, where a bank has few.
            found[word] = torch.maximum(found[word], seen) if word in found else seen
    return found


def below(limit: int, generator: Generator) -> int:
    """An integer from 0 up to, and without, a limit of at least 1."""
    return int(torch.randint(max(1, limit), (), generator=generator))


def flip(generator: Generator) -> bool:
    """True half of the time."""
    return bool(torch.rand((), generator=generator) < 0.5)


def one_of(options: Any, generator: Generator) -> Any:
    """One entry of a sequence."""
    return options[below(len(options), generator)]


def _words(layers: list[Layer]) -> set[str]:
    return {word for layer in layers for word in layer.objects}


def _by_word(words: list[str], masks: Tensor) -> dict[str, Tensor]:
    """Masks of the same word together."""
    found: dict[str, Tensor] = {}
    for word, mask in zip(words, masks, strict=True):
        found[word] = torch.maximum(found[word], mask[None]) if word in found else mask[None]
    return found
