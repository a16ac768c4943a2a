"""Colour profiles: images with an embedded ICC profile are converted to sRGB, or keep it."""

from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from PIL import ImageCms

SAME = 1  # levels of 255 by which a profile may differ from sRGB and still be called so
_MODES = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK"}  # Pillow's mode -> the profile's space
_RELATIVE_COLORIMETRIC = 1
_KEPT_AT_MOST = 32  # transforms


def profile_of(image: Image.Image) -> bytes | None:
    """The embedded profile of an image, None without one."""
    profile = image.info.get("icc_profile")
    return profile if isinstance(profile, bytes) and profile else None


def profile_space(profile: bytes) -> str | None:
    """Colour space of a profile, "RGB ", "GRAY", "CMYK" or another; None if it is damaged."""
    found = _opened(profile)
    return None if found is None else str(found.profile.xcolor_space)


def profile_name(profile: bytes) -> str:
    """What a profile calls itself."""
    from PIL import ImageCms

    found = _opened(profile)
    try:
        return " ".join(ImageCms.getProfileDescription(found).split()) if found else "damaged"
    except ImageCms.PyCMSError:
        return "without a name"


def to_srgb(image: Image.Image) -> Image.Image:
    """An image of any 8-bit mode as "RGB" or "RGBA", its values converted by its profile.

    Without a profile, with a damaged one, or with one that does not belong to the mode, the values
    count as sRGB.
    """
    profile = profile_of(image)
    opaque = not image.has_transparency_data
    if profile is None:
        return image.convert("RGB" if opaque else "RGBA")
    if opaque:
        return _converted(image, profile)
    rgba = image.convert("RGBA")
    rgb = _converted(rgba.convert("RGB"), profile)
    rgb.putalpha(rgba.getchannel("A"))
    return rgb


def _converted(image: Image.Image, profile: bytes) -> Image.Image:
    from PIL import ImageCms

    space = profile_space(profile)
    if _MODES.get(image.mode) != space:
        image = image.convert("RGB")
    if _MODES[image.mode] != space:
        return image
    transform = _transform(profile, image.mode)
    if transform is None:
        return image.convert("RGB")
    try:
        converted = ImageCms.applyTransform(image, transform)
    except (ImageCms.PyCMSError, ValueError):
        return image.convert("RGB")
    return image.convert("RGB") if converted is None else converted


def _opened(profile: bytes) -> "ImageCms.ImageCmsProfile | None":
    from PIL import ImageCms

    try:
        return ImageCms.ImageCmsProfile(BytesIO(profile))
    except (OSError, ValueError, TypeError, ImageCms.PyCMSError):
        return None


@lru_cache(maxsize=_KEPT_AT_MOST)
def _transform(profile: bytes, mode: str) -> "ImageCms.ImageCmsTransform | None":
    """From a profile to sRGB, None where that would change nothing or cannot be."""
    from PIL import ImageCms

    found = _opened(profile)
    if found is None:
        return None
    try:
        transform = ImageCms.buildTransform(
            found,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent(_RELATIVE_COLORIMETRIC),
        )
        if mode != "RGB":
            return transform
        levels = np.linspace(0, 255, 9).astype(np.uint8)
        cube = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(9, -1, 3)
        seen = ImageCms.applyTransform(Image.fromarray(cube), transform)
    except (ImageCms.PyCMSError, ValueError):
        return None
    changed = np.abs(np.asarray(seen).astype(int) - cube.astype(int)).max()
    return transform if changed > SAME else None
