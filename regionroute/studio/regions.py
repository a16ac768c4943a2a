"""Regions that people correct: the brush editor's layers as masks, and clicked objects."""

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

PAINT = (230, 0, 126)  # magenta: few photos have it
PAINT_OPACITY = 0.55
PAINTED = 40  # alpha of 255 from which a pixel of a layer belongs to the region
EDITOR_SIDE = 1024  # pixels of the longer side; larger photos are corrected on a smaller copy


def editor_value(photo: Path, mask: Tensor | None = None) -> dict[str, Any]:
    """What the brush editor shows: the photo, and the region as a layer of paint over it.

    There is no composite: the editor would draw that below the layer, where no eraser reaches it,
    and show a region before it can be painted on.

    Args:
        photo: the file.
        mask: region [H,W] in [0,1]; None: nothing is painted yet.
    """
    background = small_photo(photo)
    paint = np.zeros((background.height, background.width, 4), dtype=np.uint8)
    paint[..., :3] = PAINT
    if mask is not None:
        grey = to_pil(mask[None]).resize(background.size, Image.Resampling.BILINEAR)
        inside = np.asarray(grey) >= 128
        paint[..., 3] = np.where(inside, round(255 * PAINT_OPACITY), 0)
    return {"background": background, "layers": [Image.fromarray(paint)], "composite": None}


def small_photo(photo: Path, side: int = EDITOR_SIDE) -> Image.Image:
    """The photo, upright, with a longer side of at most `side` pixels."""
    image = to_pil(open_image(photo).rgb)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def painted_mask(value: Mapping[str, Any] | None, size: tuple[int, int]) -> Tensor | None:
    """The region that the editor's layers paint, in {0, 1} and the photo's size.

    Args:
        value: of the editor, its layers as arrays [h,w,4].
        size: (height, width) of the photo.

    Returns:
        [H,W]; None if nothing is painted.
    """
    layers: Sequence[np.ndarray] = (value or {}).get("layers") or ()
    alphas = [layer[..., 3] for layer in layers if layer.ndim == 3 and layer.shape[2] == 4]
    alphas = [alpha for alpha in alphas if alpha.shape == alphas[0].shape]
    if not alphas or not (inside := np.maximum.reduce(alphas) >= PAINTED).any():
        return None
    grey = Image.fromarray(inside.astype(np.uint8) * 255)
    if grey.size != size[::-1]:
        grey = grey.resize(size[::-1], Image.Resampling.BILINEAR)
    return torch.from_numpy((np.asarray(grey) >= 128).astype(np.float32))


def is_empty(value: Mapping[str, Any] | None) -> bool:
    """Whether the editor holds nothing, not even the photo: it is not ready yet."""
    return value is None or (value.get("background") is None and not value.get("layers"))


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
