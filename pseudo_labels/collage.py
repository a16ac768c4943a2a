"""Collages: training pairs of several photos side by side, so that the word has to choose.

In a photo of one object whatever stands out is the object, and nothing in training makes the
attention follow its word. Photos that were wholly restyled in the same style can be put together:
the collage of the targets is the exact target of the collage. Only samples of the split "train" are
used, and no collage shows a word twice.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor
from tqdm import tqdm

from pseudo_labels.compose import composite
from pseudo_labels.job import slug, write_once
from regionroute.data.images import image_size, read_image, read_mask, resize
from regionroute.data.manifest import (
    FILE_NAME,
    WHOLE,
    EditSample,
    Manifest,
    Region,
    load_manifest,
    mask_box,
    write_manifest,
)
from regionroute.data.prompts import build_prompt
from regionroute.errors import UserError

COLLAGES = "manifest_collages.jsonl"
FOLDER = "collages"
FLAG = "collage"
GRIDS = ((1, 2), (2, 1), (2, 2))  # rows and columns
SHARES = torch.tensor([0.35, 0.15, 0.5])
WORD_BALANCE = 0.6
LEAST_AREA = 0.01  # of the collage, for an object to be named
LEAST_SEEN = 0.5  # of an object, after its photo was cropped to its cell
TRIES = 20  # draws of photos without a common word

Cell = tuple[slice, slice]


@dataclass(frozen=True)
class Photo:
    """A photo that was wholly restyled: that sample, and those of its objects in its style."""

    whole: EditSample
    objects: tuple[EditSample, ...]

    @property
    def words(self) -> set[str]:
        """Its object words."""
        return {sample.regions[0].object.casefold() for sample in self.objects}


def make_collages(folder: Path, count: int, seed: int = 0) -> list[EditSample]:
    """Make collages of the photos of a data set and write their own manifest beside its own.

    Train on both with ``data.manifest=FOLDER/manifest*.jsonl``. Made again with the same data,
    count and seed, they are the same; images that are there are kept.

    Args:
        folder: of a data set of `regionroute label --whole`.
        count: number of collages, each a sample for every object in it.
        seed: of the choice of photos.

    Returns:
        The samples of ``manifest_collages.jsonl``: per collage one an object and, as
        ``data.whole_targets`` needs it, one wholly restyled.

    Raises:
        UserError: no manifest, no wholly restyled photos, or all of one word.
    """
    manifest = load_manifest(folder / FILE_NAME)
    by_style = _photos(manifest)
    samples: list[EditSample] = []
    for number in tqdm(range(count), desc="collages", unit="collage"):
        generator = Generator().manual_seed(seed * 1_000_003 + number)
        # Styles take turns, so that none gets more collages than another.
        style = sorted(by_style)[number % len(by_style)]
        chosen = _draw(by_style[style], generator)
        if chosen is not None:
            samples += _collage(manifest, f"{FLAG}-{seed}-{number:05d}", *chosen)
    if not samples:
        raise UserError(f"{folder}: its photos show one word only, a collage needs two")
    write_manifest(folder / COLLAGES, samples)
    return samples


def _photos(manifest: Manifest) -> dict[str, list[Photo]]:
    """The photos of the split "train" by style."""
    objects: dict[tuple[str, str], list[EditSample]] = {}
    wholes = []
    for sample in manifest:
        if sample.split == "train" and sample.whole:
            wholes.append(sample)
        elif sample.split == "train" and len(sample.regions) == 1:
            objects.setdefault((sample.context, sample.regions[0].style), []).append(sample)
    found: dict[str, list[Photo]] = {}
    for whole in wholes:
        style = whole.regions[0].style
        own = tuple(objects.get((whole.context, style), ()))
        if own:
            found.setdefault(style, []).append(Photo(whole, own))
    if not found:
        raise UserError(
            f"{manifest.root}: no wholly restyled photo in its split train, label with --whole"
        )
    return found


def _draw(
    photos: Sequence[Photo], generator: Generator
) -> tuple[tuple[int, int], list[Photo]] | None:
    """A grid and a photo for each of its cells; None where all show the same words."""
    drawn = GRIDS[int(torch.multinomial(SHARES, 1, generator=generator))]
    counts = Counter(word for photo in photos for word in photo.words)
    # Between "every photo alike" and "every word alike": data sets have hundreds of cats.
    rarest = [min(counts[word] for word in photo.words) for photo in photos]
    weights = torch.tensor(rarest, dtype=torch.float32) ** -WORD_BALANCE
    for grid in (drawn, (1, 2)):
        for _ in range(TRIES):
            picks = torch.multinomial(weights, grid[0] * grid[1], True, generator=generator)
            chosen = [photos[pick] for pick in picks.tolist()]
            words = [word for photo in chosen for word in photo.words]
            if len(words) == len(set(words)):
                return grid, chosen
    return None


def _collage(
    manifest: Manifest, name: str, grid: tuple[int, int], photos: Sequence[Photo]
) -> list[EditSample]:
    """The samples of one collage; its images are written."""
    root = manifest.root
    side = max(max(image_size(root / photo.whole.context)) for photo in photos)
    height, width = side // grid[0], side // grid[1]
    size = height * grid[0], width * grid[1]
    context, styled = torch.zeros(3, *size), torch.zeros(3, *size)
    masks: list[tuple[EditSample, Tensor]] = []
    for number, photo in enumerate(photos):
        row, column = divmod(number, grid[1])
        cell = (
            slice(row * height, (row + 1) * height),
            slice(column * width, (column + 1) * width),
        )
        context[:, *cell] = _filling(read_image(root / photo.whole.context), (height, width))
        styled[:, *cell] = _filling(read_image(root / photo.whole.target), (height, width))
        masks += _masks(root, photo, cell, size)
    files = {kind: f"{FOLDER}/{name}-{kind}.png" for kind in ("context", "whole", "everything")}
    write_once(root / files["context"], context)
    write_once(root / files["whole"], styled)
    write_once(root / files["everything"], torch.ones(1, *size))
    whole = photos[0].whole
    [everything] = whole.regions
    facts: dict[str, object] = {
        "photo": name,
        "photo_hash": name,
        "photos": [photo.whole.provenance.get("photo", photo.whole.context) for photo in photos],
    }
    kept = ("stylizer", "style_words")
    facts |= {key: value for key, value in whole.provenance.items() if key in kept}
    samples = [
        dataclasses.replace(
            whole,
            id=f"{name}-whole",
            context=files["context"],
            target=files["whole"],
            regions=(dataclasses.replace(everything, mask=files["everything"], box=(0, 0, *size)),),
            flags=(WHOLE, FLAG),
            provenance=facts,
        )
    ]
    for sample, mask in masks:
        stem = f"{name}-{slug(sample.regions[0].object)}"
        mask_file, target = f"{FOLDER}/{stem}-mask.png", f"{FOLDER}/{stem}.png"
        write_once(root / mask_file, mask)
        write_once(root / target, composite(context, styled, mask))
        samples.append(_sample(sample, stem, files["context"], target, mask_file, mask, facts))
    return samples if len(masks) > 1 else []


def _sample(
    single: EditSample,
    name: str,
    context: str,
    target: str,
    mask_file: str,
    mask: Tensor,
    facts: dict[str, object],
) -> EditSample:
    """A sample of one object of a collage."""
    [region] = single.regions
    words = str(single.provenance.get("style_words", region.style))
    prompt = build_prompt([(region.object, words)])
    own = Region(
        region.object, region.style, mask_file, mask_box(mask), region.score,
        prompt.object_spans[0], prompt.style_spans[0],
    )  # fmt: skip
    return EditSample(
        name, context, target, (own,), prompt.text, flags=(FLAG,),
        provenance={**facts, "area": round(float(mask.mean()), 4)},
    )  # fmt: skip


def _masks(
    root: Path, photo: Photo, cell: Cell, size: tuple[int, int]
) -> list[tuple[EditSample, Tensor]]:
    """Masks [1,H,W] in {0,1} of a photo's objects in the collage, of those that are still seen."""
    found = []
    shape = cell[0].stop - cell[0].start, cell[1].stop - cell[1].start
    for sample in photo.objects:
        mask = read_mask(root / sample.regions[0].mask, image_size(root / sample.context))
        here = (_filling(mask, shape) > 0.5).float()
        # Share of the object inside the cell: areas are compared at the scale of the cell.
        scale = max(shape[0] / mask.shape[1], shape[1] / mask.shape[2])
        seen = float(here.sum()) / max(1.0, float(mask.sum()) * scale**2)
        whole = torch.zeros(1, *size)
        whole[:, *cell] = here
        if float(whole.mean()) >= LEAST_AREA and seen >= LEAST_SEEN:
            found.append((sample, whole))
    return found


def _filling(image: Tensor, size: tuple[int, int]) -> Tensor:
    """[C,H,W] scaled until it fills the size, and its centre cropped to it."""
    scale = max(size[0] / image.shape[1], size[1] / image.shape[2])
    height, width = (
        max(want, round(scale * have)) for want, have in zip(size, image.shape[1:], strict=True)
    )
    scaled = resize(image[None], (height, width))[0].clamp(0, 1)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return scaled[:, top : top + size[0], left : left + size[1]]
