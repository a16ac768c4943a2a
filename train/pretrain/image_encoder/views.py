"""Training data of an image encoder: composed images, as its frozen backbone sees them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from tqdm import tqdm

from regionroute.data.images import resize
from regionroute.data.object_bank import PHOTO, ObjectBank
from regionroute.models.image_encoder import STRIDE, ImageEncoder
from train.pretrain.colours import in_other_colours
from train.pretrain.compositions import Composer, visible
from train.pretrain.image_encoder.config import CompositionsConfig
from train.pretrain.image_encoder.stored import Words, first_masks, read_stored, write_stored

FILE = "views.safetensors"
MAPS = ("near", "middle", "far", "evidence")
LEAST_AREA = 0.01  # of the image, for an object to count as present
_BATCH = 16


@dataclass(frozen=True)
class Views:
    """Composed images of one split.

    Attributes:
        images: uint8 [N,3,S,S], at the size that the base sees.
        maps: the arguments of `ImageEncoder.head`, fp16 [N,c,h,w] each.
        words: of each image, those of its visible objects.
        masks: uint8 [M,S/8,S/8], 255 times the covered fraction of a token: the objects' in the
            order of `words`.
        first: [N], an image's first mask.
    """

    images: Tensor
    maps: tuple[Tensor, ...]
    words: list[list[str]]
    masks: Tensor
    first: list[int]

    def mask(self, image: int) -> Tensor:
        """Covered fractions [W,h,w] of an image's objects."""
        start = self.first[image]
        return self.masks[start : start + len(self.words[image])].float() / 255


def load_views(
    cfg: CompositionsConfig, seed: int, encoder: ImageEncoder, output: Path
) -> dict[str, Views]:
    """Views of the splits "train" and "test", from the output folder or made there.

    Raises:
        UserError: the bank cannot be read.
    """
    path = output / FILE
    bank = ObjectBank(cfg.bank)
    about = [
        seed, cfg.model_dump(), bank.key, encoder.class_vectors.sum().item(), encoder.sizes["zoom"],
    ]  # fmt: skip
    made_with = json.dumps(about)
    found = read_stored(path, made_with)
    if found is None:
        tensors: dict[str, Tensor] = {}
        words: Words = {}
        counts = {"train": cfg.count, "test": cfg.held_out}
        # Both first: an empty split is an error, and images take minutes.
        composers = {split: composer_of(bank, split, cfg) for split in counts}
        for split, composer in composers.items():
            words[split] = []
            tensors |= _make(composer, counts[split], seed, encoder, cfg, words[split])
        write_stored(path, made_with, tensors, words)
        found = tensors, words
    return {split: _views(split, *found) for split in ("train", "test")}


def _views(split: str, tensors: dict[str, Tensor], words: Words) -> Views:
    own = words[split]
    maps = tuple(tensors[f"{split}.{name}"] for name in MAPS)
    images, masks = tensors[f"{split}.images"], tensors[f"{split}.masks"]
    return Views(images, maps, own, masks, first_masks(own))


def _make(
    composer: Composer,
    count: int,
    seed: int,
    encoder: ImageEncoder,
    cfg: CompositionsConfig,
    words: list[list[str]],
) -> dict[str, Tensor]:
    """Tensors of a split; `words` is filled."""
    parts: dict[str, list[Tensor]] = {name: [] for name in ("images", "masks", *MAPS)}
    for images, objects in composed_images(composer, count, seed, cfg):
        words += [list(found) for found in objects]
        for found in objects:
            parts["masks"] += [(mask * 255).round().to(torch.uint8) for mask in found.values()]
        views = encoder.views(images * 2 - 1, (cfg.side, cfg.side))
        for name, maps in zip(MAPS, views, strict=True):
            parts[name].append(maps.half().contiguous())
        small = resize(images, (cfg.side, cfg.side))
        parts["images"].append((small * 255).round().to(torch.uint8))
    return {f"{composer.split}.{name}": torch.cat(rows) for name, rows in parts.items()}


def composer_of(bank: ObjectBank, split: str, cfg: CompositionsConfig) -> Composer:
    """A composer of images for the image encoder, larger than the base sees them."""
    return Composer(bank, split, cfg.side * cfg.detail, cfg.photos)


def composed_images(
    composer: Composer, count: int, seed: int, cfg: CompositionsConfig
) -> Iterator[tuple[Tensor, list[dict[str, Tensor]]]]:
    """Images in batches, with a progress bar; an image depends on the seed and its number alone.

    Yields:
        [B,3,s,s], and of each image its objects, see `composition`.
    """
    starts = range(0, count, _BATCH)
    for start in tqdm(starts, desc=f"{composer.split} images", unit=f"x{_BATCH}"):
        made = [
            composition(composer, Generator().manual_seed(seed * 1_000_003 + number), cfg)
            for number in range(start, min(count, start + _BATCH))
        ]
        images, objects = zip(*made, strict=True)
        yield torch.stack(images), list(objects)


def composition(
    composer: Composer, generator: Generator, cfg: CompositionsConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """An image and its objects.

    Returns:
        [3,s,s] in [0,1] with s = side · detail, and covered fractions [1,side/8,side/8] by word.
    """
    layers = composer.layers(generator)
    image = composer.compose(PHOTO, layers)
    if float(torch.rand((), generator=generator)) < cfg.other_colours:
        image = in_other_colours(image[None], generator)[0]
    image = image.clamp(0, 1)
    if float(torch.rand((), generator=generator)) < cfg.blurred:
        image = _blurred(image, cfg.side, generator)
    objects = {w: m for w, m in visible(layers).items() if float(m.mean()) >= LEAST_AREA}
    return image, {w: F.avg_pool2d(m, cfg.detail * STRIDE) for w, m in objects.items()}


def _blurred(image: Tensor, least: int, generator: Generator) -> Tensor:
    """An image [3,s,s] with the detail of a side between `least` and s."""
    full = image.shape[-1]
    side = least + int(torch.randint(full - least + 1, (), generator=generator))
    return resize(resize(image[None], (side, side)), (full, full))[0]
