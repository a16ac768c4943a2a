"""Pictures, masks, JSON and hashes on disk. Every file is written under a temporary name first."""

import dataclasses
import errno
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path, PurePath
from typing import Any, NoReturn

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin
from pydantic import BaseModel
from torch import Tensor

from regionroute.errors import UserError

AnyPath = str | PathLike[str]


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


def check_output_file(path: AnyPath) -> None:
    """Refuses, before any work is done, a file that could not be written.

    Raises:
        UserError: a folder is there, a part of the path is a file, or there is no permission.
    """
    if not str(path):
        raise UserError("the file name is empty, give one")
    if os.path.isdir(path):
        raise UserError(f"{path}: this is a folder, give a file name")
    _check_parent(path, Path(path))


def check_output_folder(path: AnyPath) -> None:
    """Refuses, before any work is done, a folder that could not be made or written in.

    Raises:
        UserError: it or a part of its path is a file, or there is no permission.
    """
    if not str(path):
        raise UserError("the folder's name is empty, give one")
    if os.path.exists(path) and not os.path.isdir(path):
        raise UserError(f"{path}: this is a file, give a folder")
    _check_parent(path, Path(path) / "file")


def _check_parent(shown: AnyPath, file: Path) -> None:
    """Whether `file` can be made, judged by the nearest folder above it that is there."""
    try:
        os.lstat(file)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"{shown}: the name is too long, choose a shorter one") from error
    parent = next(folder for folder in file.absolute().parents if os.path.exists(folder))
    if not parent.is_dir():
        raise UserError(f"{shown}: {parent} is a file, not a folder; choose another place")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{shown}: no permission to write in {parent}; choose another place")


@contextmanager
def atomic_write(path: AnyPath) -> Iterator[Path]:
    """Yields a temporary name in the same folder; it becomes `path` when the block ends well.

    The temporary file keeps the suffix, by which many writers choose their format. After an
    error it is removed and an older file at `path` is untouched. Missing folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex[:12]}.tmp{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        # A write to an open file does not say which, and nobody knows the temporary name.
        if error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: AnyPath, obj: Any) -> None:
    """Writes indented JSON; data classes, pydantic models and paths are written as plain values."""
    text = json.dumps(obj, indent=2, ensure_ascii=False, default=_plain)
    _write_text(path, text + "\n")


def read_json(path: AnyPath) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: the file is missing or not JSON.
    """
    text = _read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{error.lineno}: this is not JSON ({error.msg}), mend or rebuild the file"
        ) from error
    except (ValueError, RecursionError) as error:  # numbers too long, brackets too deep
        raise UserError(f"{path}: this JSON cannot be read ({error}), rebuild the file") from error


def write_jsonl(path: AnyPath, rows: Iterable[Any]) -> None:
    """Writes one JSON value a line."""
    lines = [json.dumps(row, ensure_ascii=False, default=_plain) + "\n" for row in rows]
    _write_text(path, "".join(lines))


def read_jsonl(path: AnyPath) -> list[dict[str, Any]]:
    """Reads a file of one JSON object a line; empty lines are skipped.

    Raises:
        UserError: the file is missing, or a line (named) is not a JSON object.
    """
    return [parse_json_line(path, number, line) for number, line in numbered_lines(path)]


def numbered_lines(path: AnyPath) -> list[tuple[int, str]]:
    """The non-empty lines of a UTF-8 file with their numbers, counted from 1.

    Raises:
        UserError: the file is missing or not UTF-8 text.
    """
    lines = enumerate(_read_text(path).split("\n"), start=1)
    return [(number, line) for number, line in lines if line.strip()]


def parse_json_line(path: AnyPath, number: int, line: str) -> dict[str, Any]:
    """One line of a JSON-lines file as a dict; `path` and `number` are for the error's sentence.

    Raises:
        UserError: the line is not a JSON object.
    """
    try:
        row = json.loads(line, parse_constant=_no_constant)
        if "\\u" in line:
            json.dumps(row, ensure_ascii=False).encode()  # refuses halves of characters
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{number}: this line is not JSON ({error.msg} at column {error.colno}), "
            "mend or remove it"
        ) from error
    except (ValueError, RecursionError) as error:  # numbers too long, brackets too deep
        raise UserError(
            f"{path}:{number}: this line cannot be read ({error}), mend or remove it"
        ) from error
    if not isinstance(row, dict):
        raise UserError(f"{path}:{number}: this line must be a JSON object {{...}}")
    return row


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def is_hub_id(spec: str) -> bool:
    """Whether a text has the form of a repository's name on the hub."""
    return spec.count("/") == 1 and not spec.startswith((".", "/", "~")) and spec[-1] != "/"


def file_hash(path: AnyPath) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def text_hash(text: str) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def settings_hash(obj: Any) -> str:
    """`text_hash` of the object as JSON with sorted keys: the same for equal settings."""
    return text_hash(json.dumps(obj, sort_keys=True, separators=(",", ":"), default=_plain))


def _plain(obj: Any) -> Any:
    if isinstance(obj, BaseModel):
        return obj.model_dump(mode="json")
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return dataclasses.asdict(obj)
    if isinstance(obj, PurePath):
        return obj.as_posix()
    raise TypeError(f"{type(obj).__name__} cannot be written as JSON")


def _read_text(path: AnyPath) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file, check the path") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: this is a folder, give a file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: this is not UTF-8 text, save it as UTF-8") from error


def _write_text(path: AnyPath, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
