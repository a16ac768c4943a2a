"""A photo's way through a build: what is asked of it, by which settings, and what came of it."""

import re
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
from regionroute.errors import UserError
from regionroute.files import text_hash

SMALLEST_SIDE = 32  # pixels; smaller photos hold nothing to learn

# Part of every name of a product: raise it when equal settings would give another product.
REVISION = 1


@dataclass(frozen=True)
class BuildSettings:
    """What decides the pictures and the choice of samples.

    Attributes:
        size: longest side of the pictures; smaller photos keep their size.
        feather: ramp inside the mask's edge in pixels, 0 for a hard edge.
        limits: what is left out.
        find: how objects without masks are found.
        judge: a vision-language model that is asked about every sample, None for none.
        multi: samples a photo with two or three objects at once, each in its own style.
        whole: also a sample of each photo in each style that restyles everything, for training.
    """

    size: int = 512
    feather: int = 0
    limits: Limits = field(default_factory=Limits)
    find: FinderSettings = field(default_factory=FinderSettings)
    judge: JudgeSettings | None = None
    multi: int = 0
    whole: bool = False

    def __post_init__(self) -> None:
        if self.size < SMALLEST_SIDE:
            raise UserError(f"size is {self.size}: use {SMALLEST_SIDE} pixels or more")
        if not 0 <= self.feather <= self.size:
            raise UserError(f"feather is {self.feather}: use 0 to {self.size} pixels, the size")
        if self.multi < 0:
            raise UserError(f"multi is {self.multi}: use 0 or more samples a photo")


@dataclass(frozen=True)
class BuiltStyle:
    """A style and the stylizer made from it."""

    entry: StyleEntry
    stylizer: Stylizer[Any]


@dataclass(frozen=True)
class PhotoJob:
    """A photo to work on and the hash of its bytes."""

    photo: LabelledPhoto
    hash: str

    @property
    def slug(self) -> str:
        """The photo's part of file names and sample ids."""
        return f"{_readable(Path(self.photo.name).stem)}-{self.hash[:8]}".lstrip("-")


@dataclass
class PhotoResult:
    """What came of a photo; splits are given later, when all photos are known.

    Attributes:
        samples: one an object and style, then those with several objects.
        rejected: what was left out.
        look: the photo in a few bits (`curate.photo_look`), "" if it could not be used.
    """

    samples: list[EditSample]
    rejected: list[Rejection]
    look: str = ""


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
    """A rejection whose reason begins with the photo's path."""
    line = job.photo.line or None
    return Rejection(
        f"{job.photo.path}: {reason}", job.photo.name, word, style, line, checks=checks
    )


def write_once(path: Path, image: Tensor) -> None:
    """Write a product that is not there yet; one that is there is finished and current."""
    if not path.exists():
        write_image(path, image)


def slug(text: str) -> str:
    """A readable part of a file name; texts that differ give slugs that differ."""
    plain = _readable(text)
    return plain if plain == text else f"{plain}-{text_hash(text)[:6]}".lstrip("-")


def _readable(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-")[:40]
