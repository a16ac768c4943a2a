"""Regions that people correct, by strokes in the brush editor and by clicks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from regionroute.data.images import open_image, read_soft_mask, to_pil
from regionroute.data.masks import FAINT
from regionroute.errors import UserError

PAINT = (230, 0, 126)  # magenta, of the region and of strokes that add to it: few photos have it
REMOVE = (0, 160, 230)  # blue, of strokes that take away from it
PAINT_OPACITY = 0.55
PAINTED = 40  # alpha of 255 from which a pixel of a layer belongs to a stroke
EDITOR_SIDE = 1024  # pixels of the longer side; larger photos are corrected on a smaller copy


def editor_value(photo: Path, mask: Tensor | None = None) -> dict[str, Any]:
    """What the brush editor shows: the photo with the region in colour, and no strokes yet.

    The region is in the photo and not in a layer: Gradio's editor drops layers that it is given.

    Args:
        photo: the file.
        mask: region [H,W] in [0,1]; None: there is none yet.
    """
    background = small_photo(photo)
    if mask is not None:
        opacity = to_pil(mask[None]).resize(background.size, Image.Resampling.BILINEAR)
        opacity = opacity.point(lambda value: round(value * PAINT_OPACITY))
        background.paste(PAINT, mask=opacity)
    return {"background": background, "layers": [], "composite": None}


def small_photo(photo: Path, side: int = EDITOR_SIDE) -> Image.Image:
    """The photo, upright, with a longer side of at most `side` pixels."""
    image = to_pil(open_image(photo).rgb)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def corrected(
    region: Tensor | None, value: Mapping[str, Any] | None, size: tuple[int, int]
) -> Tensor | None:
    """A region after the strokes in the editor.

    Args:
        region: before them, [H,W] in [0,1]; None: there is none.
        value: of the editor, its layers as arrays [h,w,4], the lowest first.
        size: (height, width) of the photo.

    Returns:
        [H,W] in [0,1], 1 where `PAINT` was painted and 0 where `REMOVE` was; None if nothing is
        left.
    """
    found = torch.zeros(size) if region is None else region.clone()
    layers: Sequence[np.ndarray] = (value or {}).get("layers") or ()
    for layer in layers:
        if layer.ndim != 3 or layer.shape[2] != 4:
            continue
        stroke = layer[..., 3] >= PAINTED
        adds = _distance(layer, PAINT) <= _distance(layer, REMOVE)  # of a mixture, the upper one
        found[_scaled(stroke & adds, size)] = 1
        found[_scaled(stroke & ~adds, size)] = 0
    return found if found.any() else None


def _distance(layer: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Squared distance [h,w] of a layer's pixels from a colour."""
    found: np.ndarray = ((layer[..., :3].astype(int) - colour) ** 2).sum(-1)
    return found


def _scaled(inside: np.ndarray, size: tuple[int, int]) -> Tensor:
    """A mask [h,w] of booleans in another (height, width)."""
    grey = Image.fromarray(inside.astype(np.uint8) * 255)
    return torch.from_numpy(np.asarray(grey.resize(size[::-1], Image.Resampling.BILINEAR)) >= 128)


def clicked_mask(
    photo: Path, point: tuple[int, int], shown: tuple[int, int], segmenter: str, device: str
) -> tuple[Tensor, str]:
    """The object that was clicked.

    Args:
        photo: the file.
        point: (x, y) in the image that was shown.
        shown: (height, width) of that.
        segmenter: name, see `pseudo_labels.segment.points`.
        device: where its network runs.

    Returns:
        Mask [H,W] in {0, 1} of the photo's size, and who made it.

    Raises:
        UserError: the segmenter cannot be had, or found nothing.
    """
    from pseudo_labels.segment.points import load_point_segmenter

    image = open_image(photo).rgb
    height, width = image.shape[-2:]
    y = min(height - 1, max(0, round(point[1] * height / shown[0])))
    x = min(width - 1, max(0, round(point[0] * width / shown[1])))
    found = load_point_segmenter(segmenter, device)
    mask = found.segment_point(image, (y, x))[0]
    if not mask.any():
        raise UserError(f"{found.name} found nothing at this point: click elsewhere, or paint it")
    return mask, found.name


def combined(old: Tensor | None, new: Tensor, how: str) -> Tensor | None:
    """A region after a click: "replace", "add" or "remove"; None if nothing is left."""
    if how == "add" and old is not None:
        return torch.maximum(old, new)
    if how == "remove":
        left = None if old is None else old * (1 - new)
        return left if left is not None and left.any() else None
    return new


def read_region(path: Path, size: tuple[int, int]) -> Tensor | None:
    """A region [H,W] in [0,1] from the file of an edit; None: of an object that was not found."""
    if open_image(path).rgb.max() < FAINT:
        return None
    return read_soft_mask(path, size)[0]
