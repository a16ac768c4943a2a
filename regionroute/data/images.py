"""Images as tensors: read, written, resized. Masks are in `regionroute.data.masks`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, PngImagePlugin
from torch import Tensor

from regionroute.data.colour import profile_name, profile_of, profile_space, to_srgb
from regionroute.data.image_files import ORIENTATION, image_size, opened
from regionroute.data.masks import read_mask, read_soft_mask
from regionroute.errors import UserError
from regionroute.files import AnyPath, atomic_write, shown_path
from regionroute.settings_files import check_png_name

__all__ = [
    "LoadedImage",
    "from_pil",
    "image_size",
    "load_pil",
    "open_image",
    "read_image",
    "read_mask",
    "read_soft_mask",
    "resize",
    "split_alpha",
    "to_pil",
    "write_image",
]

CELLS, REACH = 256, 16  # at most, of an image's side; how many colours reach into the transparent
STRIP = 256  # rows of an image that are processed at a time, to bound the memory of large ones


def read_image(path: AnyPath) -> Tensor:
    """Reads an image of any mode and of the formats in `regionroute.data.image_files`.

    EXIF rotation is applied, embedded colour profiles are converted to sRGB, grey and palette
    images become RGB, transparency lies over white, 16-bit images are scaled, the first frame of
    an animation is taken. `open_image` keeps what an edit should give back.

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


@dataclass(frozen=True, eq=False)
class LoadedImage:
    """An image to edit, with what belongs to it besides its colours.

    Attributes:
        rgb: [3,H,W] in [0,1], as stored (not converted where `icc_profile` is set); where nothing
            is seen white, or the colours next to it.
        alpha: [1,H,W] in [0,1], None for an opaque image.
        icc_profile: what the colours mean, None: sRGB.
        exif: EXIF without the rotation, which is applied; None without any.
        notes: what could not be kept, one sentence each.
        hidden: [3,H,W], the colours under fully transparent pixels; None for an opaque image.
    """

    rgb: Tensor
    alpha: Tensor | None = None
    icc_profile: bytes | None = None
    exif: bytes | None = None
    notes: tuple[str, ...] = ()
    hidden: Tensor | None = None

    def restored(self, edited: Tensor) -> Tensor:
        """An edit [3,H,W] of `rgb` with the image's transparency: [4,H,W], or as it is."""
        if self.alpha is None or self.hidden is None:
            return edited
        return torch.cat([torch.where(self.alpha > 0, edited, self.hidden), self.alpha])


def open_image(path: AnyPath) -> LoadedImage:
    """Reads an image to edit, so that the edit can keep colour profile, transparency and EXIF.

    Profiles that a colour PNG cannot hold (grey, CMYK) are converted to sRGB; of several frames
    the first is read. A note tells of either.

    Args:
        path: the file.

    Raises:
        UserError: as `read_image`.
    """
    with opened(path) as image:
        image.load()  # damaged pixels are an error; that of reading EXIF is not
        exif = _exif(image)
        upright = ImageOps.exif_transpose(image)
        profile = profile_of(upright)
        kept = profile if profile is not None and profile_space(profile) == "RGB " else None
        notes = ["only its first frame is read"] if _has_more_frames(image) else []
        if kept is not None and upright.mode in ("RGB", "RGBA", "P"):
            del upright.info["icc_profile"]
        elif profile is not None and profile_space(profile) is not None:
            kept = None
            notes.append(f"the colour profile {profile_name(profile)!r} is converted to sRGB")
        values = _with_alpha(upright, f"{shown_path(path)}: the image")
    return replace(split_alpha(values), icc_profile=kept, exif=exif, notes=tuple(notes))


def load_pil(image: Image.Image) -> LoadedImage:
    """A Pillow image to edit, converted to sRGB, so that the edit can keep its transparency.

    Raises:
        UserError: the image holds values that are not finite.
    """
    return split_alpha(_with_alpha(ImageOps.exif_transpose(image), "the image"))


def split_alpha(values: Tensor) -> LoadedImage:
    """An image [3,H,W] or, with alpha, [4,H,W] in [0,1] to edit."""
    rgb, alpha = values[:3], values[3:]
    if (alpha == 1).all():  # also of an image without alpha
        return LoadedImage(rgb)
    return LoadedImage(torch.where(alpha > 0, rgb, _beside(rgb, alpha)), alpha, hidden=rgb)


def _beside(rgb: Tensor, alpha: Tensor) -> Tensor:
    """White, but the colours of what is visible next to it, so that edits have no bright seam.

    Args:
        rgb: [3,H,W] in [0,1].
        alpha: [1,H,W] in [0,1], not 1 everywhere.

    Returns:
        [3,H,W].
    """
    height, width = rgb.shape[-2:]
    weighed = torch.cat([rgb * alpha, alpha])[None]
    small = F.adaptive_avg_pool2d(weighed, (min(height, CELLS), min(width, CELLS)))
    near = F.avg_pool2d(small, 2 * REACH + 1, stride=1, padding=REACH)
    seen = near[:, 3:]
    colours = (near[:, :3] / seen.clamp(min=1e-6)).clamp(max=1)
    share = (4 * seen).clamp(max=1)  # 1 up to half the reach from a straight edge
    blended = colours * share + 1 - share
    return F.interpolate(blended, (height, width), mode="bilinear", align_corners=False)[0]


def _with_alpha(image: Image.Image, source: str) -> Tensor:
    """[3,H,W] of an opaque image, else [4,H,W]; `image` is upright."""
    if image.mode[0] in "IF" or not image.has_transparency_data:
        return _to_tensor(image, source)
    return _channels(to_srgb(image))


def _has_more_frames(image: Image.Image) -> bool:
    """Whether frames follow the first; what cameras add to a JPEG (MPO) is none."""
    try:
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))
    except Exception:  # damaged behind the first frame, for which Pillow raises nearly anything
        return False


def _exif(image: Image.Image) -> bytes | None:
    """EXIF without the rotation."""
    try:
        exif = image.getexif()
        exif.pop(ORIENTATION, None)
        return exif.tobytes() if len(exif) else None
    except Exception:  # damaged EXIF, for which Pillow raises nearly anything
        return None


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
    values = _channels(to_srgb(image))
    if len(values) == 3:
        return values
    alpha = values[3:]
    return values[:3].mul_(alpha).add_(1 - alpha)  # over white


def _channels(image: Image.Image) -> Tensor:
    """Channels first, float32 in [0,1], with no more than one copy in each precision."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255.0)


def _grey(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.clip(0, 1))[None].repeat(3, 1, 1)


def to_pil(image: Tensor) -> Image.Image:
    """8-bit Pillow image of a float tensor in [0,1]: grey or RGB, without or with alpha.

    Args:
        image: [C,H,W] with C = 1 ("L"), 2 ("LA"), 3 ("RGB") or 4 ("RGBA").

    Raises:
        ValueError: another shape, or values that are not finite.
    """
    if image.ndim != 3 or image.shape[0] not in (1, 2, 3, 4):
        raise ValueError(f"expected [C,H,W] with C from 1 to 4, got {list(image.shape)}")
    channels, height, width = image.shape
    array = np.empty((height, width, channels), np.uint8)
    for first in range(0, height, STRIP):
        strip = image[:, first : first + STRIP].detach().float().cpu()
        if not torch.isfinite(strip).all():
            raise ValueError("the image holds values that are not finite")
        levels = (strip.clamp(0, 1) * 255).round().to(torch.uint8)
        array[first : first + STRIP] = levels.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def write_image(
    path: AnyPath,
    image: Tensor,
    metadata: Mapping[str, str] | None = None,
    *,
    icc_profile: bytes | None = None,
    exif: bytes | None = None,
) -> None:
    """Writes a PNG of values in [0,1] (clamped).

    Args:
        path: file name ending in ``.png``; missing folders are made.
        image: float tensor, see `to_pil`.
        metadata: texts stored as PNG text chunks.
        icc_profile: what the colours mean, None: sRGB.
        exif: EXIF block to store, None for none.

    Raises:
        UserError: the name does not end in ``.png``.
        ValueError: another shape, or values that are not finite.
    """
    check_png_name(path)
    info = PngImagePlugin.PngInfo()
    for key, text in (metadata or {}).items():
        info.add_text(key, text)
    written = to_pil(image)
    with atomic_write(path) as temporary:
        options = {} if exif is None else {"exif": exif}
        written.save(temporary, format="PNG", pnginfo=info, icc_profile=icc_profile, **options)


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes [B,3,H,W] in [0,1] to ``size`` = (H',W'), antialiased; unchanged at equal size."""
    if (images.shape[-2], images.shape[-1]) == tuple(size):
        return images
    resized = F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp_(0, 1)
