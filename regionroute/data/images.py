"""Images as tensors: read, written, resized. Masks are in `regionroute.data.masks`."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, PngImagePlugin
from torch import Tensor

from regionroute.data.image_files import image_size, opened
from regionroute.data.masks import read_mask, read_soft_mask
from regionroute.errors import UserError
from regionroute.files import AnyPath, atomic_write, shown_path

__all__ = [
    "from_pil",
    "image_size",
    "read_image",
    "read_mask",
    "read_soft_mask",
    "resize",
    "to_pil",
    "write_image",
]


def read_image(path: AnyPath) -> Tensor:
    """Reads an image of any mode and of the formats in `regionroute.data.image_files`.

    EXIF rotation is applied, grey and palette images become RGB, transparency lies over white,
    16-bit images are scaled, the first frame of an animation is taken.

    Args:
        path: the file.

    Returns:
        Float32 tensor [3,H,W] in [0,1].

    Raises:
        UserError: the file is missing, damaged, not an image, too large or holds NaN.
    """
    with opened(path) as image:
        return _to_tensor(image, f"{shown_path(path)}: the image")


def from_pil(image: Image.Image) -> Tensor:
    """Float32 tensor [3,H,W] in [0,1] of a Pillow image, by the same rules as `read_image`.

    Raises:
        UserError: the image holds values that are not finite.
    """
    return _to_tensor(image, "the image")


def _to_tensor(image: Image.Image, source: str) -> Tensor:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey; Pillow has called it "I" or "I;16"
        return _grey(np.asarray(image).astype(np.float32) / 65535.0)
    if image.mode == "F":  # float TIFF, by custom either in [0,1] or in [0,255]
        grey = np.asarray(image, dtype=np.float32)
        if not np.isfinite(grey).all():
            raise UserError(
                f"{source} holds values that are not finite (NaN), save it without them"
            )
        return _grey(grey / 255.0 if grey.max() > 1 else grey)
    if not image.has_transparency_data:
        return _channels(image if image.mode == "RGB" else image.convert("RGB"))
    rgba = _channels(image if image.mode == "RGBA" else image.convert("RGBA"))
    alpha = rgba[3:]
    return rgba[:3].mul_(alpha).add_(1 - alpha)  # over white


def _channels(image: Image.Image) -> Tensor:
    """Channels first, float32 in [0,1], with no more than one copy in each precision."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255.0)


def _grey(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.clip(0, 1))[None].repeat(3, 1, 1)


def to_pil(image: Tensor) -> Image.Image:
    """8-bit Pillow image ("RGB" or "L") of a float tensor [3,H,W] or [1,H,W] in [0,1].

    Raises:
        ValueError: another shape, or values that are not finite.
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"expected [3,H,W] or [1,H,W], got {list(image.shape)}")
    image = image.detach().float().cpu()
    if not torch.isfinite(image).all():
        raise ValueError("the image holds values that are not finite")
    array = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def write_image(path: AnyPath, image: Tensor, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a PNG: [3,H,W] in colour, [1,H,W] in grey, values in [0,1] (clamped).

    Args:
        path: file name ending in ``.png``; missing folders are made.
        image: float tensor.
        metadata: texts stored as PNG text chunks.

    Raises:
        UserError: the name does not end in ``.png``.
        ValueError: a shape other than the two, or values that are not finite.
    """
    if Path(path).suffix.lower() != ".png":
        raise UserError(f"{path}: images are written as PNG, give a name that ends in .png")
    info = PngImagePlugin.PngInfo()
    for key, text in (metadata or {}).items():
        info.add_text(key, text)
    written = to_pil(image)
    with atomic_write(path) as temporary:
        written.save(temporary, format="PNG", pnginfo=info)


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes [B,3,H,W] in [0,1] to ``size`` = (H',W'), antialiased; unchanged at equal size."""
    if (images.shape[-2], images.shape[-1]) == tuple(size):
        return images
    resized = F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(0, 1)
