"""What is asked of each photo of a build, with which settings, and the result."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pseudo_labels.curate.filters import Limits
from pseudo_labels.curate.judge import JudgeSettings
from pseudo_labels.segment import Segment
from pseudo_labels.segment.given import LabelledPhoto, Rejection
from pseudo_labels.segment.loading import FinderSettings
from pseudo_labels.stylize.base import Stylizer
from pseudo_labels.stylize.registry import StyleEntry
from regionroute.data.images import write_image
from regionroute.data.manifest import EditSample
from regionroute.data.startup.contents import ImageContent
from regionroute.errors import UserError
from regionroute.files import text_hash

SMALLEST_SIDE = 32  # pixels; smaller photos are rejected

# Part of the name of every product; raise it when equal settings would give another product.
REVISION = 1
CROP = "crop"  # provenance of samples of a crop: its number


@dataclass(frozen=True)
class BuildSettings:
    """Settings that decide images and choice of samples.

    Attributes:
        size: longest side of the images in pixels; smaller photos keep their size.
        feather: soft edge inside the mask in pixels, 0 for a hard edge.
        limits: which objects and samples are rejected.
        find: how objects without masks are found.
        judge: vision-language model that judges every sample, None for none.
        multi: samples per photo with two or three objects, each in its own style.
        whole: add training samples of whole restyled photos.
        crops: crops of each photo, to train on besides.
    """

    size: int = 512
    feather: int = 0
    limits: Limits = field(default_factory=Limits)
    find: FinderSettings = field(default_factory=FinderSettings)
    judge: JudgeSettings | None = None
    multi: int = 0
    whole: bool = False
    crops: int = 0

    def __post_init__(self) -> None:
        if self.size < SMALLEST_SIDE:
            raise UserError(f"size is {self.size}: use {SMALLEST_SIDE} pixels or more")
        if not 0 <= self.feather <= self.size:
            raise UserError(f"feather is {self.feather}: use 0 to {self.size} pixels")
        if self.multi < 0:
            raise UserError(f"multi is {self.multi}: use 0 or more samples per photo")
        if self.crops < 0:
            raise UserError(f"crops is {self.crops}: use 0 or more per photo")


@dataclass(frozen=True)
class BuiltStyle:
    """A style and the stylizer made from it."""

    entry: StyleEntry
    stylizer: Stylizer[Any]


@dataclass(frozen=True)
class PhotoJob:
    """A photo to label.

    Attributes:
        photo: the photo.
        hash: of its bytes.
        crop: number of a crop of it, from 1 on; 0 for the photo itself.
    """

    photo: LabelledPhoto
    hash: str
    crop: int = 0

    @property
    def slug(self) -> str:
        """The photo's part of file names and sample ids."""
        name = f"{_readable(Path(self.photo.name).stem)}-{self.hash[:8]}".lstrip("-")
        return f"{name}-crop{self.crop}" if self.crop else name


@dataclass
class PhotoResult:
    """Result of one photo; splits are assigned later, when all photos are known.

    Attributes:
        samples: one per object and style, then those with several objects.
        rejected: what was not used, and why.
        look: perceptual hash (`curate.filters.perceptual_hash`), "" if the photo was not used.
        images: what the files of the samples hold.
    """

    samples: list[EditSample]
    rejected: list[Rejection]
    look: str = ""
    images: list[ImageContent] = field(default_factory=list)


@dataclass(frozen=True)
class PhotoObject:
    """A usable object of the photo at the working size."""

    segment: Segment
    mask_file: str
    flags: tuple[str, ...]
    checks: dict[str, float]


def rejection(
    job: PhotoJob,
    reason: str,
    word: str | None = None,
    style: str | None = None,
    checks: dict[str, Any] | None = None,
) -> Rejection:
    """A rejection; its reason begins with the photo's path."""
    line = job.photo.line or None
    return Rejection(
        f"{job.photo.path}: {reason}", job.photo.name, word, style, line, checks=checks
    )


def write_once(path: Path, image: Tensor) -> None:
    """Write a product unless it exists: an existing one is complete and current."""
    if not path.exists():
        write_image(path, image)


def write_keeping_mtime(path: Path, write: Callable[[Path, Any], None], content: Any) -> None:
    """Write a file; if its bytes do not change, neither does its modification time.

    Args:
        path: the file.
        write: writes `content` to a path.
        content: what to write.
    """
    before = (path.read_bytes(), path.stat()) if path.is_file() else None
    write(path, content)
    if before is not None and path.read_bytes() == before[0]:
        os.utime(path, ns=(before[1].st_atime_ns, before[1].st_mtime_ns))


def slug(text: str) -> str:
    """A readable part of a file name; different texts give different slugs."""
    plain = _readable(text)
    return plain if plain == text else f"{plain}-{text_hash(text)[:6]}".lstrip("-")


def _readable(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-")[:40]
