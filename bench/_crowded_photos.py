"""Test photos of several objects: those that no training saw, and mosaics of photos of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pseudo_labels.photo import open_photo
from pseudo_labels.segment.given import LabelledPhoto, read_labels
from regionroute.data.images import resize
from regionroute.data.object_bank import ObjectBank
from regionroute.editing.editor import Editor

LEAST_AREA = 0.01  # of the image, for an object to be asked for
FARTHEST = 0.55  # cosine of an absent word with those present, at most
SIDE = 256  # of a tile of a mosaic


@dataclass(frozen=True)
class Photo:
    """A test photo: image [3,H,W] in [0,1], word -> mask [1,H,W] in {0,1}, an absent word."""

    name: str
    kind: str
    image: Tensor
    objects: dict[str, Tensor]
    absent: str


def test_photos(
    labels: Sequence[Path], bank: ObjectBank, editor: Editor, mosaics: int
) -> list[Photo]:
    """Photos of several objects that no training saw, and mosaics."""
    split = {photo.file: photo.split for photo in bank.photos}
    singles: list[tuple[Tensor, str, Tensor]] = []
    crowded: list[tuple[str, str, Tensor, dict[str, Tensor]]] = []
    for path in labels:
        for photo in tqdm(read_labels(path)[0], desc=path.parent.name, unit="photo"):
            if split.get(photo.name, "test") != "test":
                continue
            image, objects = opened(photo)
            if len(objects) > 1:
                crowded.append((photo.name, "photo", image, objects))
            elif objects and photo.name in split:
                [(word, mask)] = objects.items()
                singles.append((image, word, mask))
    rng = np.random.default_rng(0)
    for number in range(mosaics):
        chosen = [singles[i] for i in rng.choice(len(singles), 4, replace=False)]
        if len({word for _, word, _ in chosen}) == 4:
            image, objects = _mosaic(chosen)
            crowded.append((f"mosaic {number}", "mosaic", image, objects))
    words = sorted({word for photo in bank.photos for word in photo.words})
    vectors = editor.backbone.word_vectors(words)
    photos = []
    for name, kind, image, objects in crowded:
        near = (vectors @ editor.backbone.word_vectors(list(objects)).T).amax(1)
        far = [word for word, value in zip(words, near.tolist(), strict=True) if value < FARTHEST]
        photos.append(Photo(name, kind, image, objects, far[int(rng.integers(len(far)))]))
    return photos


def opened(photo: LabelledPhoto) -> tuple[Tensor, dict[str, Tensor]]:
    """Pixels and the masks of the objects that are large enough, by word."""
    image, segments, _ = open_photo(photo)
    objects: dict[str, Tensor] = {}
    for segment in segments:
        word, mask = segment.word.casefold(), (segment.mask > 0.5).float()
        objects[word] = torch.maximum(objects[word], mask) if word in objects else mask
    return image, {word: mask for word, mask in objects.items() if mask.mean() >= LEAST_AREA}


def _mosaic(tiles: Sequence[tuple[Tensor, str, Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
    """Four photos of one object as a 2x2 image of 512 px."""
    image = torch.zeros(3, 2 * SIDE, 2 * SIDE)
    objects = {}
    for number, (photo, word, mask) in enumerate(tiles):
        top, left = SIDE * (number // 2), SIDE * (number % 2)
        window = (slice(top, top + SIDE), slice(left, left + SIDE))
        image[:, *window] = _square(photo)
        objects[word] = torch.zeros(1, 2 * SIDE, 2 * SIDE)
        objects[word][:, *window] = (_square(mask) > 0.5).float()
    return image, objects


def _square(pixels: Tensor) -> Tensor:
    """The central square of [C,H,W], at `SIDE`."""
    side = min(pixels.shape[-2:])
    top, left = ((length - side) // 2 for length in pixels.shape[-2:])
    square = pixels[None, :, top : top + side, left : left + side]
    return resize(square, (SIDE, SIDE))[0].clamp(0, 1)
