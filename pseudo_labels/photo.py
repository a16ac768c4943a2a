"""Finds the objects of one photo and makes its training pairs."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from pseudo_labels.crops import SMALLEST, crops
from pseudo_labels.curate.filters import object_checks, object_fault, perceptual_hash
from pseudo_labels.job import (
    REVISION,
    SMALLEST_SIDE,
    BuildSettings,
    BuiltStyle,
    PhotoJob,
    PhotoObject,
    PhotoResult,
    rejection,
    slug,
    write_once,
)
from pseudo_labels.pairs import PairMaker
from pseudo_labels.segment import Box, Segment, choose_segments, resize_mask, touching
from pseudo_labels.segment.find import find_objects, restore, store
from pseudo_labels.segment.given import LabelledObject, LabelledPhoto, Rejection, open_photo
from pseudo_labels.segment.loading import FinderSettings
from regionroute.data.images import from_pil, to_pil
from regionroute.data.manifest import EditSample
from regionroute.errors import UserError
from regionroute.files import settings_hash

SMALL_AREA = 0.05  # fraction of the image below which an object is flagged "small"
FINDING_SIDE = 1024  # longer side in pixels at which objects are detected


def make_samples(
    job: PhotoJob, out: Path, styles: Sequence[BuiltStyle], settings: BuildSettings
) -> PhotoResult:
    """Make all pairs of one photo; existing products are not made again.

    Args:
        job: the photo.
        out: folder of the data set.
        styles: the styles; the photo is restyled at most once in each.
        settings: sizes, limits, and how objects are found.

    Returns:
        One sample per object and style, of the photo and of its crops, and what was rejected.

    Raises:
        UserError: the photo itself cannot be used.
    """
    image, segments, rejected = open_photo(job.photo)
    content = _fit(image, settings.size, job.photo)
    found, missing = _found(job, image, out, settings.find)
    rejected += missing
    chosen = choose_segments([*segments, *found], settings.find.instances)
    rejected += _unchosen(job, [*segments, *found], chosen, settings.find.instances)
    samples = _pairs(job, content, chosen, out, styles, settings, rejected)
    drawn = crops(image, chosen, settings.crops, settings.size, job.hash)
    for number, (part, segments) in enumerate(drawn, start=1):
        crop = dataclasses.replace(job, crop=number)
        part = _fit(part, settings.size, job.photo)
        samples += _pairs(crop, part, segments, out, styles, settings, rejected)
    return PhotoResult(samples, rejected, perceptual_hash(content))


def _pairs(
    job: PhotoJob,
    content: Tensor,
    segments: Sequence[Segment],
    out: Path,
    styles: Sequence[BuiltStyle],
    settings: BuildSettings,
    rejected: list[Rejection],
) -> list[EditSample]:
    """All pairs of a photo, or of a crop, at the working size."""
    key = [REVISION, settings.size, *([SMALLEST] if job.crop else [])]
    context = f"images/{job.slug}-{settings_hash(key)[:8]}.png"
    objects, faulty = _usable(job, content, segments, settings)
    rejected += faulty
    if objects:
        write_once(out / context, content)
    for item in objects:
        write_once(out / item.mask_file, item.segment.mask)
    maker = PairMaker(job, out, settings, content, context)
    samples: list[EditSample] = []
    for style in styles:
        kept = maker.samples(style, objects, rejected)
        samples += [*kept, maker.whole(style, kept[0])] if kept and settings.whole else kept
    return [*samples, *maker.several(samples, objects)]


def _found(
    job: PhotoJob, image: Tensor, out: Path, settings: FinderSettings
) -> tuple[list[Segment], list[Rejection]]:
    """Objects without masks, detected once and recorded."""
    wanted = [item for item in job.photo.objects if not item.masked]
    if not wanted:
        return [], []
    image, wanted = _smaller(image, wanted)
    size = (image.shape[-2], image.shape[-1])
    asked = [(item.word, item.box) for item in wanted]
    key = settings_hash([REVISION, settings.fingerprint(), size, job.photo.name, asked])[:10]
    record = out / ".cache" / "found" / f"{job.slug}-{key}.json"
    known = restore(record, size)
    if known is None:
        photo = dataclasses.replace(job.photo, objects=tuple(wanted))
        known = find_objects(image, photo, settings)
        store(record, *known)
    return known


def _smaller(
    image: Tensor, objects: Sequence[LabelledObject]
) -> tuple[Tensor, list[LabelledObject]]:
    """Image and boxes at the size at which objects are detected."""
    height, width = image.shape[-2:]
    scale = min(1.0, FINDING_SIDE / max(height, width))
    if scale == 1:
        return image, list(objects)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = from_pil(to_pil(image).resize(size, Image.Resampling.LANCZOS))
    scaled = [
        item if item.box is None else dataclasses.replace(item, box=_scaled(item.box, scale))
        for item in objects
    ]
    return small, scaled


def _scaled(box: Box, scale: float) -> Box:
    y0, x0, y1, x1 = (round(edge * scale) for edge in box)
    return y0, x0, y1, x1


def _unchosen(
    job: PhotoJob, found: Sequence[Segment], chosen: Sequence[Segment], policy: str
) -> list[Rejection]:
    """Words with fewer objects than the requested instance number."""
    kept = {segment.word.casefold() for segment in chosen}
    lost = {segment.word.casefold(): segment.word for segment in found}
    return [
        rejection(job, f"it has no {word} number {policy}", word)
        for key, word in lost.items()
        if key not in kept
    ]


def _usable(
    job: PhotoJob, content: Tensor, segments: Sequence[Segment], settings: BuildSettings
) -> tuple[list[PhotoObject], list[Rejection]]:
    """The objects within the limits, at the working size."""
    size = (content.shape[-2], content.shape[-1])
    kept: list[tuple[Segment, dict[str, float]]] = []
    rejected = []
    for segment in segments:
        try:
            mask = resize_mask(segment.mask, size)
        except UserError as error:
            rejected.append(rejection(job, str(error), segment.word))
            continue
        checks = object_checks(mask, segment.score)
        fault = object_fault(checks, segment.word, settings.limits)
        if fault:
            rejected.append(rejection(job, fault, segment.word, checks=checks))
        else:
            kept.append((dataclasses.replace(segment, mask=mask), checks))
    objects = []
    for segment, checks in kept:
        key = settings_hash([REVISION, size, segment.mask.bool().numpy().tobytes().hex()])[:8]
        others = [other for other, _ in kept if other is not segment]
        file = f"masks/{job.slug}-{slug(segment.word)}-{key}.png"
        objects.append(PhotoObject(segment, file, _flags(segment, others), checks))
    return objects, rejected


def _fit(image: Tensor, size: int, photo: LabelledPhoto) -> Tensor:
    """The photo as it is stored: 8-bit values, longest side at most `size`."""
    height, width = image.shape[-2:]
    scale = min(1.0, size / max(height, width))
    height, width = round(height * scale), round(width * scale)
    if min(height, width) < SMALLEST_SIDE:
        raise UserError(
            f"{photo.path}: {width}x{height} pixels at the working size are too few, "
            f"the minimum is {SMALLEST_SIDE} per side"
        )
    stored = to_pil(image)
    if scale < 1:
        stored = stored.resize((width, height), Image.Resampling.LANCZOS)
    return from_pil(stored)


def _flags(segment: Segment, others: Sequence[Segment]) -> tuple[str, ...]:
    """Flags as for synthetic scenes; occlusion is unknown for photos."""
    flags = ["multi" if others or segment.count > 1 else "single"]
    if segment.count > 1:
        flags.append("several")
    if any(touching(segment.mask, other.mask) for other in others):
        flags.append("touching")
    if segment.area < SMALL_AREA:
        flags.append("small")
    return tuple(flags)
