"""Pictures whose style is known: where they are, what they show, and drawing pairs of them.

An image's content is what it shows, named by the stem of its file (or of the photo it was made
from): ``starry/dog-3.png`` and ``cubism/dog-3.png`` show the same thing. Two images make a pair
that teaches style only if their contents differ.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from regionroute.data.image_files import images_in
from regionroute.data.images import read_image, resize
from regionroute.data.manifest import EditSample, load_manifest
from regionroute.data.shards import has_manifest
from regionroute.errors import UserError, nearest
from regionroute.files import atomic_write, settings_hash


@dataclass(frozen=True)
class StylePicture:
    """An image in a style.

    Attributes:
        path: its file.
        style: the style's name.
        content: what it shows.
        box: the part that is in the style, (y0, x0, y1, x1) half-open; None: all of it.
        sample: id of the sample whose target it is, if it is of a manifest.
        reference: id of the sample that `label --references` chose as that one's example.
    """

    path: Path
    style: str
    content: str
    box: tuple[int, int, int, int] | None = None
    sample: str | None = None
    reference: str | None = None

    def read(self) -> Tensor:
        """[3,H,W] in [0,1].

        Raises:
            UserError: missing or damaged, or smaller than its box.
        """
        image = read_image(self.path)
        if self.box is None:
            return image
        y0, x0, y1, x1 = self.box
        part = image[:, y0:y1, x0:x1]
        if part.shape[1:] != (y1 - y0, x1 - x0) or 0 in part.shape:
            raise UserError(f"{self.path}: the box {self.box} is not inside this image, fix it")
        return part


def read_style_pictures(source: str | Path, split: str | None = "train") -> list[StylePicture]:
    """Finds the images of a folder of folders, or the restyled objects of a manifest.

    Args:
        source: folder with one folder a style, or a manifest (file or folder).
        split: of a manifest; None: all.

    Returns:
        By style, then by content; each style has at least two contents.

    Raises:
        UserError: nothing there, or a style with fewer than two contents.
    """
    path = Path(source).expanduser()
    if is_manifest := has_manifest(path):
        found = _of_manifest(path, split)
    elif path.is_dir():
        found = [
            StylePicture(file, folder.name, file.stem)
            for folder in sorted(path.iterdir())
            if folder.is_dir() and not folder.name.startswith(".")
            for file in images_in(folder)
        ]
    else:
        what = "this is a file" if path.exists() else "no such folder"
        raise UserError(
            f"{source}: {what}, give a folder with one of images for each style, or a manifest"
        )
    if not found:
        where = f"split {split!r} has" if is_manifest else "has"
        raise UserError(
            f"{source}: {where} no images of styles, put them into one folder per style"
        )
    for style, contents in _contents(found).items():
        if len(contents) < 2:
            raise UserError(
                f"{source}: style {style!r} has images of one content only, but a style is learned "
                "from at least two: add images or remove the style"
            )
    return found


def _of_manifest(path: Path, split: str | None) -> list[StylePicture]:
    manifest = load_manifest(path)
    return [
        StylePicture(
            manifest.path(sample.target),
            region.style,
            content_of(sample),
            region.box,
            sample.id,
            _name_or_none(sample.provenance.get("reference")),
        )
        for sample in manifest.samples
        if split is None or sample.split == split
        for region in sample.regions
    ]


def _name_or_none(value: Any) -> str | None:
    """Provenance is anything; only a sample's id counts."""
    return value if isinstance(value, str) else None


def content_of(sample: EditSample) -> str:
    """What a sample's images show: the stem of its context's file."""
    return Path(sample.context).stem


def _contents(pictures: Sequence[StylePicture]) -> dict[str, set[str]]:
    contents: dict[str, set[str]] = defaultdict(set)
    for picture in pictures:
        contents[picture.style].add(picture.content)
    return contents


def styles_of(pictures: Sequence[StylePicture]) -> list[str]:
    """The styles' names, sorted."""
    return sorted({picture.style for picture in pictures})


def only_styles(
    pictures: Sequence[StylePicture], wanted: Sequence[str], source: str
) -> list[StylePicture]:
    """The images of some styles.

    Raises:
        UserError: a style has none.
    """
    known = styles_of(pictures)
    for style in wanted:
        if style not in known:
            raise UserError(
                f"{source}: no images of style {style!r}, the nearest is "
                f"{nearest(style, known)!r}: add a folder of that name"
            )
    return [picture for picture in pictures if picture.style in wanted]


def hold_out(
    pictures: Sequence[StylePicture], share: float, seed: int
) -> tuple[list[int], list[int]]:
    """Positions to train on and to validate with; the two show different things.

    Args:
        pictures: see `read_style_pictures`.
        share: of the contents to keep for validation; at least one if above 0.
        seed: of the choice.

    Raises:
        UserError: a style would be left with fewer than two contents to train on.
    """
    contents = sorted({picture.content for picture in pictures})
    count = max(1, round(share * len(contents))) if share else 0
    order = np.random.default_rng([seed, 1]).permutation(len(contents))
    held = {contents[i] for i in order[:count]}
    rest = [picture for picture in pictures if picture.content not in held]
    left = _contents(rest)
    for style in styles_of(pictures):
        if len(left.get(style, ())) < 2:
            raise UserError(
                f"pictures.held_out={share}: style {style!r} has too few contents to keep any "
                "aside, lower it or add pictures"
            )
    training = [i for i, picture in enumerate(pictures) if picture.content not in held]
    return training, [i for i, picture in enumerate(pictures) if picture.content in held]


def load_pixels(pictures: Sequence[StylePicture], size: int, cache: Path) -> np.ndarray:
    """All images as the tower sees them, read once into a file that is mapped into memory.

    Args:
        pictures: P of them.
        size: S.
        cache: the file; made again if it is of other images.

    Returns:
        uint8 [P,3,S,S].

    Raises:
        UserError: an image is missing or damaged.
    """
    facts = [
        [str(p.path), p.path.stat().st_mtime_ns, p.path.stat().st_size, p.box] for p in pictures
    ]
    key = settings_hash([facts, size])
    path = cache.with_name(f"{cache.stem}-{key}.npy")
    if not path.is_file():
        for old in cache.parent.glob(f"{cache.stem}-*.npy"):
            old.unlink()
        with atomic_write(path) as temporary:
            pixels = np.lib.format.open_memmap(
                temporary, mode="w+", dtype=np.uint8, shape=(len(pictures), 3, size, size)
            )
            for i, picture in enumerate(tqdm(pictures, "reading pictures", unit="picture")):
                seen = resize(picture.read()[None], (size, size))[0]
                pixels[i] = (seen * 255).round().to(torch.uint8).numpy()
            pixels.flush()
    return np.load(path, mmap_mode="r")


def draw_pairs(
    pictures: Sequence[StylePicture], positions: Sequence[int], batch: int, rng: np.random.Generator
) -> tuple[list[int], list[int]]:
    """Two batches for InfoNCE, row by row of one style and of different contents.

    The contents of each style are divided at random between the two batches, so that no image
    of one batch shows the same thing in the same style as any of the other: such a pair would be
    recognised by its content. The same content in another style may occur, as a hard negative.

    Args:
        pictures: see `read_style_pictures`.
        positions: those to draw from; two contents a style at least.
        batch: B; styles are drawn without repetition as long as there are others.
        rng: draws everything.

    Returns:
        Positions of the first and of the second batch, B each.
    """
    by_style: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for position in positions:
        by_style[pictures[position].style][pictures[position].content].append(position)
    styles = sorted(by_style)
    rounds = -(-batch // len(styles))
    drawn = np.concatenate([rng.permutation(len(styles)) for _ in range(rounds)])[:batch]
    halves = {}
    for index in sorted(set(drawn.tolist())):
        contents = sorted(by_style[styles[index]])
        order = rng.permutation(len(contents))
        middle = len(contents) // 2
        halves[index] = [[contents[i] for i in part] for part in (order[:middle], order[middle:])]
    first: list[int] = []
    second: list[int] = []
    for index in drawn.tolist():
        for side, chosen in zip(halves[index], (first, second), strict=True):
            shown = by_style[styles[index]][side[rng.integers(len(side))]]
            chosen.append(shown[rng.integers(len(shown))])
    return first, second
