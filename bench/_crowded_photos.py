"""Test photos of several objects: those that no training saw, and mosaics of photos of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pseudo_labels.photo import open_photo
from pseudo_labels.segment.given import LabelledPhoto, read_label_files, read_labels
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
    absent: str = ""


def photos_set_aside(
    labels: Sequence[Path], outlines: Path | None, bank: ObjectBank, editor: Editor, mosaics: int
) -> list[Photo]:
    """Photos of several objects that no training saw, and mosaics.

    A photo of the kind "photo" has the objects of its labels file; one of the kind "outlined" has
    those of `outlines` in addition. A photo with both is in both.

    Args:
        labels: labels files.
        outlines: labels file of further objects on photos of the first; None: none.
        bank: what was trained on; its test photos count.
        editor: for the word vectors.
        mosaics: how many to make of photos with one object.
    """
    split = {photo.file: photo.split for photo in bank.photos}
    rng = np.random.default_rng(0)
    given = [photo for path in labels for photo in _read([path], "photo", split)]
    crowded = [photo for photo in given if len(photo.objects) > 1]
    singles = [photo for photo in given if len(photo.objects) == 1 and photo.name in split]
    if outlines is not None:
        folder = labels[0].parent
        named = {photo.name for photo in read_labels(outlines, folder)[0]}
        again = _read([labels[0], outlines], "outlined", split)
        crowded += [p for p in again if p.name in named and len(p.objects) > 1]
    for number in range(mosaics):
        chosen = [singles[i] for i in rng.choice(len(singles), 4, replace=False)]
        tiles = {word: (p.image, mask) for p in chosen for word, mask in p.objects.items()}
        if len(tiles) == 4:
            crowded.append(Photo(f"mosaic {number}", "mosaic", *_mosaic(tiles)))
    words = sorted(bank.subjects())  # others might be there, unlabelled
    vectors = editor.backbone.word_vectors(words)
    photos = []
    for photo in crowded:
        near = (vectors @ editor.backbone.word_vectors(list(photo.objects)).T).amax(1)
        far = [word for word, value in zip(words, near.tolist(), strict=True) if value < FARTHEST]
        photos.append(replace(photo, absent=far[int(rng.integers(len(far)))]))
    return photos


def _read(paths: Sequence[Path], kind: str, split: Mapping[str, str]) -> list[Photo]:
    """Photos that are no training photos of the bank."""
    known, _ = read_label_files(paths, paths[0].parent)
    aside = [photo for photo in known if split.get(photo.name, "test") == "test"]
    return [Photo(photo.name, kind, *opened(photo)) for photo in tqdm(aside, desc=kind)]


def opened(photo: LabelledPhoto) -> tuple[Tensor, dict[str, Tensor]]:
    """Pixels and the masks of the objects that are large enough, by word."""
    image, segments, _ = open_photo(photo)
    objects: dict[str, Tensor] = {}
    for segment in segments:
        word, mask = segment.word.casefold(), (segment.mask > 0.5).float()
        objects[word] = torch.maximum(objects[word], mask) if word in objects else mask
    return image, {word: mask for word, mask in objects.items() if mask.mean() >= LEAST_AREA}


def _mosaic(tiles: Mapping[str, tuple[Tensor, Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
    """Four photos of one object as a 2x2 image of 512 px, from word -> photo and mask."""
    image = torch.zeros(3, 2 * SIDE, 2 * SIDE)
    objects = {}
    for number, (word, (photo, mask)) in enumerate(tiles.items()):
        top, left = SIDE * (number // 2), SIDE * (number % 2)
        window = (slice(top, top + SIDE), slice(left, left + SIDE))
        image[:, *window] = _square(photo)
        objects[word] = torch.zeros(1, 2 * SIDE, 2 * SIDE)
        objects[word][:, *window] = (_square(mask) > 0.5).float()
    return image, objects


def panel(image: Tensor, mask: Tensor, edit: Tensor) -> Tensor:
    """Photo with the object outlined by brightness, beside its edit: [3,160,320]."""
    shown = image * (0.35 + 0.65 * mask)
    size = (160, 160)
    return torch.cat([resize(x[None], size)[0].clamp(0, 1) for x in (shown, edit)], -1)


def _square(pixels: Tensor) -> Tensor:
    """The central square of [C,H,W], at `SIDE`."""
    side = min(pixels.shape[-2:])
    top, left = ((length - side) // 2 for length in pixels.shape[-2:])
    square = pixels[None, :, top : top + side, left : left + side]
    return resize(square, (SIDE, SIDE))[0].clamp(0, 1)
