"""Images and masks: read, written, resized."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, PngImagePlugin
from torch import Tensor

from regionroute.errors import UserError
from regionroute.files import AnyPath, atomic_write


@contextmanager
def _opened(path: AnyPath, kind: str) -> Iterator[Image.Image]:
    """Opens the first frame; any way a file can fail to be a picture becomes a `UserError`."""
    path = Path(path)
    if os.path.isdir(path):
        raise UserError(f"{path}: this is a folder, give the {kind}'s file name")
    if not os.path.exists(path):
        raise UserError(f"{path}: no such {kind}, check the path")
    try:
        with Image.open(path) as image:
            yield image
    except PermissionError as error:
        raise UserError(f"{path}: no permission to read this {kind}, change its rights") from error
    # Pillow's decoders raise nearly any exception class on damaged files.
    except Exception as error:
        raise UserError(
            f"{path}: this {kind} cannot be read, it is damaged or not a picture ({error})"
        ) from error


def _to_array(image: Image.Image, backdrop: float) -> np.ndarray:
    """Float32 array [H,W,3] in [0,1] from any Pillow mode, transparency laid over `backdrop`."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey; Pillow has called it "I" or "I;16"
        grey = np.asarray(image).astype(np.float32) / 65535.0
        return np.repeat(grey.clip(0, 1)[..., None], 3, axis=2)
    if image.mode == "F":  # float TIFF, by custom either in [0,1] or in [0,255]
        grey = np.asarray(image, dtype=np.float32)
        grey = grey / 255.0 if grey.max() > 1 else grey
        return np.repeat(grey.clip(0, 1)[..., None], 3, axis=2)
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0
    rgba = np.asarray(image.convert("RGBA"), dtype=np.float32) / 255.0
    alpha = rgba[..., 3:]
    return rgba[..., :3] * alpha + backdrop * (1 - alpha)


def read_image(path: AnyPath) -> Tensor:
    """Reads a picture of any mode and format Pillow knows.

    EXIF rotation is applied, grey and palette pictures become RGB, transparency lies over white,
    16-bit pictures are scaled, of an animation the first frame is taken.

    Args:
        path: the file.

    Returns:
        Float32 tensor [3,H,W] in [0,1].

    Raises:
        UserError: the file is missing, damaged or not a picture.
    """
    with _opened(path, "picture") as image:
        array = _to_array(image, backdrop=1.0)
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


def read_mask(path: AnyPath, size: tuple[int, int] | None = None) -> Tensor:
    """Reads a mask of any mode: 1 where the brightness is at least 128 of 255.

    Args:
        path: the file. Transparent pixels count as outside.
        size: the (height, width) the mask must have, None for any.

    Returns:
        Float32 tensor [1,H,W] with values in {0,1}.

    Raises:
        UserError: the file is missing, damaged, not a picture or of another size.
    """
    # Half a level of slack: the weighted sum of equal channels may fall just below 128/255.
    return (read_soft_mask(path, size) >= 127.5 / 255).float()


def read_soft_mask(path: AnyPath, size: tuple[int, int] | None = None) -> Tensor:
    """As `read_mask`, with the brightness itself: float32 [1,H,W] in [0,1]."""
    with _opened(path, "mask") as image:
        array = _to_array(image, backdrop=0.0)
    height, width = array.shape[:2]
    if size is not None and (height, width) != tuple(size):
        raise UserError(
            f"{path}: the mask is {width}x{height} pixels but its picture is {size[1]}x{size[0]}, "
            "make a mask of the picture's size"
        )
    return torch.from_numpy(array @ np.array([0.299, 0.587, 0.114], dtype=np.float32))[None]


def image_size(path: AnyPath) -> tuple[int, int]:
    """The (height, width) of a picture after EXIF rotation, read from its header.

    Raises:
        UserError: the file is missing, damaged or not a picture.
    """
    with _opened(path, "picture") as image:
        width, height = image.size
        sideways = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    return (width, height) if sideways else (height, width)


def to_pil(image: Tensor) -> Image.Image:
    """8-bit Pillow picture ("RGB" or "L") of a float tensor [3,H,W] or [1,H,W] in [0,1].

    Raises:
        ValueError: another shape, or values that are not finite.
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"expected [3,H,W] or [1,H,W], got {list(image.shape)}")
    image = image.detach().float().cpu()
    if not torch.isfinite(image).all():
        raise ValueError("the picture holds values that are not finite")
    array = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def from_pil(image: Image.Image) -> Tensor:
    """Float32 tensor [3,H,W] in [0,1] of a Pillow picture, by the same rules as `read_image`."""
    return torch.from_numpy(_to_array(image, backdrop=1.0)).permute(2, 0, 1).contiguous()


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
        raise UserError(f"{path}: pictures are written as PNG, give a name that ends in .png")
    info = PngImagePlugin.PngInfo()
    for key, text in (metadata or {}).items():
        info.add_text(key, text)
    picture = to_pil(image)
    with atomic_write(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=info)


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes [B,3,H,W] in [0,1] to ``size`` = (H',W'), antialiased; unchanged at equal size."""
    if (images.shape[-2], images.shape[-1]) == tuple(size):
        return images
    resized = F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(0, 1)
