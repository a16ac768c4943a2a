"""The training pairs of one photo: each of its objects in each style."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from pseudo_labels.compose import composite
from pseudo_labels.segment import Segment, resize_mask, touching
from pseudo_labels.segment.given import LabelledPhoto, Rejection, open_photo
from pseudo_labels.stylize import Stylizer
from pseudo_labels.stylize.registry import StyleEntry
from regionroute.errors import UserError
from regionroute.io import from_pil, settings_hash, text_hash, to_pil, write_image
from regionroute.manifest import EditSample, Region
from regionroute.prompts import build_prompt

SMALLEST_SIDE = 32  # pixels; smaller photos hold nothing to learn
SMALL_AREA = 0.05  # share of the picture below which an object is flagged "small"

# Part of every name of a product: raise it when equal settings would give another product.
REVISION = 1


@dataclass(frozen=True)
class BuildSettings:
    """What decides the pictures and the choice of samples.

    Attributes:
        size: longest side of the pictures; smaller photos keep their size.
        feather: ramp inside the mask's edge in pixels, 0 for a hard edge.
        min_area: smallest share of the picture an object may have (spec: 1 %).
        max_area: largest share (spec: 70 %).
    """

    size: int = 512
    feather: int = 0
    min_area: float = 0.01
    max_area: float = 0.70

    def __post_init__(self) -> None:
        if self.size < SMALLEST_SIDE:
            raise UserError(f"size is {self.size}: use {SMALLEST_SIDE} pixels or more")
        if not 0 <= self.feather <= self.size:
            raise UserError(f"feather is {self.feather}: use 0 to {self.size} pixels, the size")


@dataclass(frozen=True)
class Look:
    """A style and the stylizer made from it."""

    entry: StyleEntry
    stylizer: Stylizer


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
    """What came of a photo; splits are given later, when all photos are known."""

    samples: list[EditSample]
    rejected: list[Rejection]


def make_samples(
    job: PhotoJob, out: Path, styles: Sequence[Look], settings: BuildSettings
) -> PhotoResult:
    """Make all pairs of one photo; products that are there already are not made again.

    Args:
        job: the photo.
        out: the data set's folder.
        styles: the styles; the photo is restyled at most once in each.
        settings: size, feather and limits of area.

    Returns:
        One sample an object and style, and the objects that were left out.

    Raises:
        UserError: the photo itself cannot be used.
    """
    picture, segments, rejected = open_photo(job.photo)
    content = _fit(picture, settings.size, job.photo)
    context = f"images/{job.slug}-{settings_hash([REVISION, settings.size])[:8]}.png"
    size = (content.shape[-2], content.shape[-1])
    usable: list[tuple[Segment, str]] = []
    for segment in segments:
        try:
            smaller = dataclasses.replace(segment, mask=resize_mask(segment.mask, size))
            _check_area(smaller, job.photo, settings)
        except UserError as error:
            rejected.append(
                Rejection(str(error), job.photo.name, segment.word, line=job.photo.line)
            )
            continue
        key = settings_hash([REVISION, size, _bits(smaller.mask)])[:8]
        usable.append((smaller, f"masks/{job.slug}-{slug(segment.word)}-{key}.png"))
    if usable:
        _write_once(out / context, content)
    for segment, file in usable:
        _write_once(out / file, segment.mask)
    samples = []
    for style in styles:
        targets = _targets(style, content, context, usable, settings, out)
        for (segment, mask_file), target in zip(usable, targets, strict=True):
            others = [other for other, _ in usable if other is not segment]
            flags = _flags(segment, others)
            samples.append(_sample(job, style, segment, context, mask_file, target, flags))
    return PhotoResult(samples, rejected)


def _fit(picture: Tensor, size: int, photo: LabelledPhoto) -> Tensor:
    """The picture as it will be stored: 8-bit values, longest side at most `size`."""
    height, width = picture.shape[-2:]
    scale = min(1.0, size / max(height, width))
    height, width = round(height * scale), round(width * scale)
    if min(height, width) < SMALLEST_SIDE:
        raise UserError(
            f"{photo.path}: {width}x{height} pixels at the working size are too few, "
            f"{SMALLEST_SIDE} a side is the least"
        )
    stored = to_pil(picture)
    if scale < 1:
        stored = stored.resize((width, height), Image.Resampling.LANCZOS)
    return from_pil(stored)


def _check_area(segment: Segment, photo: LabelledPhoto, settings: BuildSettings) -> None:
    if not settings.min_area <= segment.area <= settings.max_area:
        raise UserError(
            f"{photo.path}: the {segment.word} covers {segment.area:.1%} of the picture, usable is "
            f"{settings.min_area:.0%} to {settings.max_area:.0%}"
        )


def _bits(mask: Tensor) -> str:
    return mask.bool().numpy().tobytes().hex()


def _targets(
    style: Look,
    content: Tensor,
    context: str,
    usable: Sequence[tuple[Segment, str]],
    settings: BuildSettings,
    out: Path,
) -> list[str]:
    """One target a segment; the photo is restyled once, and only if a target is missing."""
    key = [context, style.stylizer.fingerprint, settings.feather]
    files = []
    for _, mask_file in usable:
        stem = f"{Path(mask_file).stem}-{slug(style.entry.spec.name)}"
        files.append(f"targets/{stem}-{settings_hash([*key, mask_file])[:8]}.png")
    missing = [i for i, file in enumerate(files) if not (out / file).exists()]
    if missing:
        styled = style.stylizer.stylize(content, style.entry.spec)
        for i in missing:
            target = composite(content, styled, usable[i][0].mask, settings.feather)
            write_image(out / files[i], target)
    return files


def _flags(segment: Segment, others: Sequence[Segment]) -> tuple[str, ...]:
    """The same words as for synthetic scenes; what lies behind something cannot be seen here."""
    flags = ["multi" if others or segment.count > 1 else "single"]
    if segment.count > 1:
        flags.append("several")
    if any(touching(segment.mask, other.mask) for other in others):
        flags.append("touching")
    if segment.area < SMALL_AREA:
        flags.append("small")
    return tuple(flags)


def _sample(
    job: PhotoJob,
    style: Look,
    segment: Segment,
    context: str,
    mask_file: str,
    target: str,
    flags: tuple[str, ...],
) -> EditSample:
    spec = style.entry.spec
    prompt = build_prompt([(segment.word, spec.words)])
    region = Region(
        object=segment.word,
        style=spec.name,
        mask=mask_file,
        box=segment.box,
        score=segment.score,
        object_span=prompt.object_spans[0],
        style_span=prompt.style_spans[0],
    )
    photo = Path(job.photo.name)
    provenance = {
        # A relative name only: absolute paths mean nothing on another machine.
        "photo": photo.name if photo.is_absolute() else job.photo.name,
        "photo_hash": job.hash,
        "mask_source": segment.source,
        "stylizer": style.entry.stylizer,
        "stylizer_hash": text_hash(style.stylizer.fingerprint),
        **getattr(style.stylizer, "remarks", {}),
        "area": round(segment.area, 4),
        **job.photo.facts,
    }
    return EditSample(
        id=f"{job.slug}-{slug(segment.word)}-{spec.name}",
        context=context,
        target=target,
        regions=(region,),
        prompt=prompt.text,
        flags=flags,
        provenance=provenance,
    )


def _write_once(path: Path, image: Tensor) -> None:
    if not path.exists():
        write_image(path, image)


def slug(text: str) -> str:
    """A readable part of a file name; texts that differ give slugs that differ."""
    plain = _readable(text)
    return plain if plain == text else f"{plain}-{text_hash(text)[:6]}".lstrip("-")


def _readable(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-")[:40]
