"""Opens image files: which formats, how large, and one clear error for whatever goes wrong."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from regionroute.errors import UserError
from regionroute.files import AnyPath, check_input_file, shown_path
from regionroute.folders import check_input_folder

# Pillow knows forty formats, some of which start other programs (PostScript: Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000")  # JPEG includes MPO
NAMED = "JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF, JPEG 2000, MPO or HEIC"
SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "tif", "tiff", "bmp", "gif"),
        *("avif", "avifs", "jp2", "j2k", "jpc", "jpf", "jpx", "j2c", "mpo", "heic", "heif", "hif"),
    )
)
MAX_PIXELS = 64_000_000  # an edit of so many takes 3.2 GB, see bench/large_image.py
LIMIT_VARIABLE = "REGIONROUTE_MAX_PIXELS"
ORIENTATION = 0x0112  # EXIF tag
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_OTHERS = {
    b"%!PS": "PostScript",
    b"%PDF": "PDF",
    b"8BPS": "Photoshop",
    b"<svg": "SVG",
    b"<?xm": "XML or SVG",
    b"v/1\x01": "OpenEXR",
    b"DDS ": "DDS",
    b"GRIB": "GRIB",
    b"RIFF": "a RIFF file other than WebP",
}

# Ours is the lower limit, and an error in place of a warning.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@dataclass(frozen=True)
class ImageHeader:
    """What an image's header says.

    Attributes:
        size: (height, width) after EXIF rotation.
        orientation: EXIF orientation, 1 to 8; 5 to 8 swap height and width.
    """

    size: tuple[int, int]
    orientation: int = 1


def is_image_name(path: Path) -> bool:
    """Whether a name is that of an image by its ending; hidden ones, as macOS's ``._a.jpg``, no."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def images_in(folder: Path) -> list[Path]:
    """The images directly in a folder, sorted by name; none where there are none.

    Raises:
        UserError: no such folder, or a file.
    """
    check_input_folder(folder, "folder of images")
    return sorted(x for x in folder.iterdir() if is_image_name(x) and not x.is_dir())


def max_pixels() -> int:
    """The largest number of pixels an image may have: `MAX_PIXELS` or ``REGIONROUTE_MAX_PIXELS``.

    Raises:
        UserError: the variable is not a whole number above 0.
    """
    text = os.environ.get(LIMIT_VARIABLE)
    if text is None:
        return MAX_PIXELS
    if not text.strip().isdecimal() or int(text) < 1:
        raise UserError(f"{LIMIT_VARIABLE} is {text!r}: give a whole number of pixels above 0")
    return int(text)


@contextmanager
def opened(path: AnyPath, kind: str = "image") -> Iterator[Image.Image]:
    """Opens an image file; whatever fails, inside the block too, becomes a `UserError`.

    Args:
        path: the file.
        kind: what the file is meant to be, for the error's sentence.

    Raises:
        UserError: the file is missing, special, damaged, of another format or too large.
    """
    check_input_file(path, kind)
    shown = shown_path(path)
    limit = max_pixels()
    if Image.MAX_IMAGE_PIXELS is not None:  # at twice this number Pillow refuses by itself
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, limit)
    try:
        with Image.open(path, formats=_formats(Path(path), kind)) as image:
            width, height = image.size
            if width * height > limit:
                raise UserError(f"{shown}: {width}x{height} {_too_many(limit)}")
            yield image
    except UserError:
        raise
    except PermissionError as error:
        raise UserError(f"{shown}: no permission to read this {kind}, change its rights") from error
    except MemoryError as error:
        raise UserError(
            f"{shown}: not enough memory for this {kind}: scale it down or free some memory"
        ) from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{shown}: {_too_many(limit)}") from error
    except UnidentifiedImageError as error:
        raise UserError(
            f"{shown}: this {kind} cannot be read, it is damaged or not an image of a known "
            f"format{_guess(Path(path))}: use {NAMED}"
        ) from error
    # Pillow's decoders raise nearly any exception class on damaged files.
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's, not a decoder's
            raise UserError(f"{shown}: this {kind} cannot be read: {error.strerror}") from error
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{shown}: this {kind} cannot be read, it is damaged ({reason})") from error


def image_header(path: AnyPath) -> ImageHeader:
    """Size and orientation of an image, without decoding it.

    Raises:
        UserError: the file is missing, damaged or not an image.
    """
    with opened(path) as image:
        width, height = image.size
        orientation = image.getexif().get(ORIENTATION, 1)
    if orientation not in range(1, 9):
        orientation = 1
    size = (width, height) if orientation >= 5 else (height, width)
    return ImageHeader(size, orientation)


def image_size(path: AnyPath) -> tuple[int, int]:
    """The (height, width) of an image after EXIF rotation, read from its header.

    Raises:
        UserError: the file is missing, damaged or not an image.
    """
    return image_header(path).size


def _too_many(limit: int) -> str:
    return (
        f"pixels are too many, the limit is {limit / 1e6:g} million: scale the image down, or "
        f"raise the limit with the environment variable {LIMIT_VARIABLE}"
    )


def _formats(path: Path, kind: str) -> tuple[str, ...]:
    if not _is_heic(_start(path)):
        return FORMATS
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise UserError(
            f"{path}: this {kind} is HEIC, which needs the package pillow-heif: "
            "pip install pillow-heif, or save it as JPEG or PNG"
        ) from error
    register_heif_opener()
    return (*FORMATS, "HEIF")


def _is_heic(start: bytes) -> bool:
    return start[4:8] == b"ftyp" and start[8:12] in _HEIC_BRANDS and b"avif" not in start


def _guess(path: Path) -> str:
    start = _start(path).lstrip()
    if not start:
        return " (it is empty)"
    return next((f" ({name})" for magic, name in _OTHERS.items() if start.startswith(magic)), "")


def _start(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(64)
    except OSError:
        return b""
