"""Masks from image files: which pixels are the object, however the file encodes it.

One reader for all commands (labels, region maps, scoring), with one rule:

1. alpha, where it varies and the colours are not themselves a mask (a cut-out, a sticker);
2. values 0 and 1 are scaled to 0 and 255;
3. else brightness.

What could be read in two ways is refused with a sentence that asks for a clear file, and so is a
mask without any object.
"""

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from regionroute.data.image_files import opened
from regionroute.errors import UserError
from regionroute.files import AnyPath, shown_path

HALF = 127.5 / 255  # of 8 bits, 128 is the darkest level inside
FAINT = 13 / 255  # a region map whose brightest pixel is below this would change nothing visible
COLOURED = 48  # levels between the channels from which a pixel is no grey
VOID = 255  # level of pixels without a class in label maps, whose classes are small numbers
MOST_CLASSES = 20
_WEIGHTS = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_REMEDY = "save it as a grey image, 255 inside the object and 0 outside"


def read_mask(path: AnyPath, size: tuple[int, int] | None = None) -> Tensor:
    """Reads a mask: 1 where its value, by the module's rule, is at least 128 of 255.

    Args:
        path: the file.
        size: the (height, width) the mask must have, None for any.

    Returns:
        Float32 tensor [1,H,W] with values in {0,1}, at least one of them 1.

    Raises:
        UserError: the file is missing, damaged, not an image or of another size; the mask is empty
            or can be read in two ways.
    """
    values = _read(path, size)
    inside = values >= HALF
    if not inside.any():
        raise UserError(
            f"{shown_path(path)}: the mask is empty, no pixel reaches 128 of 255, the brightest is "
            f"{values.max() * 255:.0f}; {_REMEDY}"
        )
    return torch.from_numpy(inside.astype(np.float32))[None]


def read_soft_mask(path: AnyPath, size: tuple[int, int] | None = None) -> Tensor:
    """As `read_mask`, with the values themselves: float32 [1,H,W] in [0,1]."""
    values = torch.from_numpy(_read(path, size))[None]
    check_visible(values, shown_path(path))
    return values


def check_visible(values: Tensor, source: str) -> None:
    """Refuse a soft mask with values in [0,1] that selects nothing.

    Raises:
        UserError: even its brightest pixel would change nothing visible.
    """
    if values.max() < FAINT:
        raise UserError(
            f"{source}: the brightest pixel is {values.max() * 255:.2g} of 255, such a mask "
            f"selects nothing; {_REMEDY}"
        )


def mask_from_pil(image: Image.Image, source: str = "the mask") -> Tensor:
    """Values of a Pillow mask by the rule of the module: float32 [1,H,W] in [0,1].

    Args:
        image: any mode.
        source: names the mask in errors.

    Raises:
        UserError: the mask is empty or can be read in two ways.
    """
    values = _values(ImageOps.exif_transpose(image), source)
    if not values.any():
        raise UserError(f"{source}: the mask is empty, all its pixels are 0; {_REMEDY}")
    return torch.from_numpy(values)[None]


def _read(path: AnyPath, size: tuple[int, int] | None) -> np.ndarray:
    with opened(path, "mask") as image:
        upright = ImageOps.exif_transpose(image)
        width, height = upright.size
        if size is not None and (height, width) != tuple(size):
            raise UserError(
                f"{shown_path(path)}: the mask is {width}x{height} pixels but its image is "
                f"{size[1]}x{size[0]}, make a mask of the image's size"
            )
        return mask_from_pil(upright, shown_path(path))[0].numpy()


def _values(image: Image.Image, source: str) -> np.ndarray:
    if image.mode.startswith("I"):
        return _deep_values(np.asarray(image).astype(np.int64))
    if image.mode == "F":
        return _float_values(np.asarray(image), source)
    if image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA"))
        if rgba[..., 3].min() != rgba[..., 3].max():
            return _alpha_values(rgba, source)
        return _colour_values(rgba[..., :3], source)
    if image.mode in ("1", "L"):
        return _grey_values(np.asarray(image.convert("L")), source)
    return _colour_values(np.asarray(image.convert("RGB")), source)


def _alpha_values(rgba: np.ndarray, source: str) -> np.ndarray:
    """Alpha that varies is the mask, unless the visible colours are black and white as well."""
    alpha = rgba[..., 3]
    if alpha.max() == 1:
        alpha = alpha * np.uint8(255)
    visible = rgba[alpha >= 128][:, :3].astype(np.int16)
    if len(visible) and not _coloured(visible):
        black, white = (visible.max(1) < 64).mean(), (visible.min(1) >= 192).mean()
        if min(black, white) > 0.005 and black + white > 0.95:
            raise UserError(
                f"{source}: its colours are a black and white mask and its transparency is "
                f"another, it is not clear which one is meant; {_REMEDY}, without transparency"
            )
    return alpha.astype(np.float32) / 255


def _colour_values(rgb: np.ndarray, source: str) -> np.ndarray:
    if (rgb[..., 0] == rgb[..., 1]).all() and (rgb[..., 1] == rgb[..., 2]).all():
        return _grey_values(rgb[..., 0], source)
    if _coloured(rgb.reshape(-1, 3).astype(np.int16)):
        raise UserError(
            f"{source}: this is a coloured image, it is not clear which colours are the object; "
            f"{_REMEDY}"
        )
    values = rgb.astype(np.float32) / 255 @ _WEIGHTS
    # The weighted sum of equal channels may fall just below their value.
    return np.where(values > HALF - 1e-6, np.maximum(values, HALF), values).astype(np.float32)


def _coloured(rgb: np.ndarray) -> bool:
    return bool(((rgb.max(1) - rgb.min(1)) > COLOURED).mean() > 0.01)


def _grey_values(grey: np.ndarray, source: str) -> np.ndarray:
    """Brightness of 8-bit levels, after a look at which levels there are."""
    levels = np.flatnonzero(np.bincount(grey.ravel(), minlength=256))
    if levels[-1] == 1:
        return grey.astype(np.float32)
    classes = [int(level) for level in levels if 0 < level < VOID]
    if classes and max(classes) <= MOST_CLASSES:
        raise UserError(
            f"{source}: its levels are {', '.join(map(str, levels[:6]))}, as in a map of several "
            f"labels, it is not clear which one is the object; {_REMEDY}"
        )
    return grey.astype(np.float32) / 255


def _deep_values(grey: np.ndarray) -> np.ndarray:
    """Values of 16 bits, or of 8 bits or 0 and 1 in a file of 16."""
    top = int(grey.max(initial=0))
    if top == 255 and set(np.unique(grey).tolist()) <= {0, 255}:
        return grey.astype(np.float32) / 255
    scale = 1.0 if top == 1 else 65535.0
    return (grey.astype(np.float32) / scale).clip(0, 1)


def _float_values(grey: np.ndarray, source: str) -> np.ndarray:
    if not np.isfinite(grey).all():
        raise UserError(f"{source}: the mask holds values that are not finite; {_REMEDY}")
    return (grey / 255 if grey.max() > 1 else grey).astype(np.float32).clip(0, 1)
