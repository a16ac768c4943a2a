"""Crops of a photo: more to train on where photos are few."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

import torch
from PIL import Image
from torch import Generator, Tensor

from pseudo_labels.segment import Segment, resize_mask
from regionroute.data.images import from_pil, to_pil
from regionroute.errors import UserError
from regionroute.files import text_hash

SMALLEST = 0.3  # side of a crop, as a share of the photo's shorter side


def crops(
    image: Tensor, segments: Sequence[Segment], count: int, size: int, name: str
) -> Iterator[tuple[Tensor, list[Segment]]]:
    """Square parts of a photo around its objects, half of them mirrored.

    Args:
        image: the photo, [3, H, W] in [0, 1].
        segments: its objects, with masks of any size.
        count: number of crops.
        size: least side of a crop in pixels, as far as the photo has them: strokes keep their
            width.
        name: of the photo; decides what is drawn.

    Yields:
        Each crop with the objects in it; their masks have its size.
    """
    image = _shrunk(image, size)
    height, width = image.shape[-2:]
    segments = list(_resized(segments, (height, width)))
    if not segments:
        return
    draw = Generator().manual_seed(int(text_hash(name)[:15], 16))
    for number in range(count):
        y, x, side = _window(height, width, size, segments[number % len(segments)], draw)
        part = image[:, y : y + side, x : x + side]
        masks = [s.mask[:, y : y + side, x : x + side] for s in segments]
        if torch.rand((), generator=draw) < 0.5:
            part, masks = part.flip(-1), [mask.flip(-1) for mask in masks]
        found = [
            replace(s, mask=mask.contiguous())
            for s, mask in zip(segments, masks, strict=True)
            if mask.any()
        ]
        yield part.contiguous(), found


def _resized(segments: Sequence[Segment], size: tuple[int, int]) -> Iterator[Segment]:
    """The objects at the photo's size (height, width), without those of which nothing is left."""
    for segment in segments:
        with suppress(UserError):
            yield replace(segment, mask=resize_mask(segment.mask, size))


def _shrunk(image: Tensor, size: int) -> Tensor:
    """The photo with as many pixels as the smallest crop needs."""
    height, width = image.shape[-2:]
    scale = size / (SMALLEST * min(height, width))
    if scale >= 1:
        return image
    smaller = (max(1, round(width * scale)), max(1, round(height * scale)))
    return from_pil(to_pil(image).resize(smaller, Image.Resampling.LANCZOS))


def _window(
    height: int, width: int, size: int, segment: Segment, draw: Generator
) -> tuple[int, int, int]:
    """Top, left and side of a square whose centre is on an object's box."""
    zoom, down, right = torch.rand(3, generator=draw).tolist()
    shorter = min(height, width)
    side = max(round(shorter * SMALLEST**zoom), min(shorter, size))
    y0, x0, y1, x1 = segment.box
    top = round(y0 + down * (y1 - y0) - side / 2)
    left = round(x0 + right * (x1 - x0) - side / 2)
    return min(max(0, top), height - side), min(max(0, left), width - side), side
