"""Targets of a bank: photos painted in its styles, on disk, so that a stopped run resumes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from tqdm import tqdm

from pseudo_labels.stylemamba.bank.styles import BankStyle
from regionroute.data.images import read_image, write_image
from regionroute.files import settings_hash, text_hash

SUFFIX = ".png"


@dataclass(frozen=True)
class Target:
    """A photo and the file of its painting.

    Attributes:
        photo: file of the photo.
        style: index of the style.
        painted: PNG of its painting, of the size of `resized`.
    """

    photo: Path
    style: int
    painted: Path


def plan_targets(
    photos: Sequence[Path],
    styles: Sequence[BankStyle],
    count: int,
    side: int,
    folder: Path,
    seed: int = 0,
) -> list[Target]:
    """Choose which photo is painted in which style: styles in turn, photos in random order.

    Args:
        photos: files.
        styles: of the bank.
        count: number of paintings for each style.
        side: shorter side of the paintings in pixels.
        folder: of the paintings.
        seed: of the order.

    Returns:
        `count` targets per style; a photo occurs at most once in a style if there are enough.
    """
    planned = []
    for index, style in enumerate(styles):
        # By name, so that a style's targets stay when others join the bank.
        generator = Generator().manual_seed(int(text_hash(f"{seed} {style.name}")[:8], 16))
        key = f"{style.name}-{settings_hash([style.entry.build().fingerprint, side])[:8]}"
        order = torch.randperm(len(photos), generator=generator).tolist()
        planned.append(
            [
                Target(photos[i], index, folder / key / _file(photos[i]))
                for i in (order * -(-count // len(order)))[:count]
            ]
        )
    return [row for rows in zip(*planned, strict=True) for row in rows]


def _file(photo: Path) -> str:
    return f"{photo.stem}-{text_hash(photo.as_posix())[:6]}{SUFFIX}"


def paint_targets(targets: Sequence[Target], styles: Sequence[BankStyle], side: int) -> None:
    """Paint the targets that do not exist yet."""
    missing = [target for target in targets if not target.painted.is_file()]
    painters = [style.entry.build() for style in styles]
    for target in tqdm(missing, desc="targets", unit="image", disable=None):
        spec = styles[target.style].entry.spec
        painted = painters[target.style].stylize(resized(target.photo, side), spec)
        target.painted.parent.mkdir(parents=True, exist_ok=True)
        write_image(target.painted, painted)


def resized(photo: Path, side: int) -> Tensor:
    """A photo [3, H, W] in [0, 1] whose shorter side is `side` pixels."""
    image = read_image(photo)
    scale = side / min(image.shape[-2:])
    size = [max(side, round(length * scale)) for length in image.shape[-2:]]
    return F.interpolate(image[None], size, mode="bicubic", antialias=True)[0].clamp(0, 1)


def batches(
    targets: Sequence[Target], side: int, crop: int, batch: int, seed: int, first: int = 0
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless random batches: photos, paintings [B, 3, crop, crop] and styles [B].

    All images are kept in memory, a byte for each value.

    Args:
        targets: painted targets.
        side: of the paintings.
        crop: side of the random crops in pixels.
        batch: B.
        seed: of order and crops.
        first: batches to skip, so that a resumed run sees what it would have seen.
    """
    pairs = [(_bytes(resized(t.photo, side)), _bytes(read_image(t.painted))) for t in targets]
    number = first
    while True:
        generator = Generator().manual_seed(seed * 1_000_003 + number)
        chosen = torch.randint(len(targets), (batch,), generator=generator).tolist()
        rows = [_crops(pairs[i], crop, generator) for i in chosen]
        photos, painted = (torch.stack(part) for part in zip(*rows, strict=True))
        yield photos, painted, torch.tensor([targets[i].style for i in chosen])
        number += 1


def _bytes(image: Tensor) -> Tensor:
    return (image * 255).round().byte()


def _crops(pair: tuple[Tensor, Tensor], crop: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """The same crop of a photo and its painting [3, H, W] in 0..255: [3, crop, crop] in [0, 1]."""
    photo, painted = pair
    top, left = (
        int(torch.randint(length - crop + 1, (), generator=generator))
        for length in photo.shape[-2:]
    )
    here = (slice(None), slice(top, top + crop), slice(left, left + crop))
    return photo[here] / 255, painted[here] / 255
