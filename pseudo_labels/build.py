"""From labelled photos to training pairs: the resumable pipeline that writes a manifest.

    OUT/images/    photos at the working size          (contexts)
    OUT/masks/     one mask a photo and word
    OUT/targets/   the photo with that object restyled
    OUT/manifest.jsonl, OUT/rejected.jsonl
    OUT/.cache/    what was decided for each photo

Every product is named by a hash of all it depends on and written under a temporary name, so a
product that is there is finished and current: an interrupted or repeated run makes only what is
missing, and a changed setting redoes only what it touches. Products of other settings stay.
"""

import dataclasses
import functools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from tqdm import tqdm

from pseudo_labels.parallel import default_workers, map_in_order, one_thread
from pseudo_labels.photo import REVISION, BuildSettings, Look, PhotoJob, PhotoResult, make_samples
from pseudo_labels.segment.given import LabelledPhoto, Rejection, content_hash, read_labels
from pseudo_labels.stylize.registry import StyleEntry
from regionroute.errors import UserError
from regionroute.io import (
    file_hash,
    read_json,
    settings_hash,
    text_hash,
    write_json,
    write_jsonl,
)
from regionroute.manifest import EditSample, write_manifest

_RECORD = TypeAdapter(PhotoResult)
_TEMPORARY = re.compile(r"\.[0-9a-f]{12}\.tmp(\.\w+)?")


@dataclass(frozen=True)
class BuildReport:
    """What a build came to."""

    manifest: Path
    samples: list[EditSample]
    rejected: list[Rejection]


def build(
    labels: Path,
    styles: Sequence[StyleEntry],
    out: Path,
    settings: BuildSettings,
    *,
    test_share: float = 0.2,
    limit: int | None = None,
    workers: int | None = None,
) -> BuildReport:
    """Make every (photo, object, style) pair of a labels file.

    Args:
        labels: labels file (`pseudo_labels.segment.given`).
        styles: the styles; each photo is restyled once in each, whatever the number of objects.
        out: folder of the data set; made if missing.
        settings: size, feather, limits of area.
        test_share: share of the photos whose samples go to the split "test".
        limit: only the first so many photos.
        workers: processes, None to choose.

    Returns:
        The samples, and what was rejected and why.

    Raises:
        UserError: no such labels file, or not one sample could be made.
    """
    photos, rejected = read_labels(labels)
    jobs, doubles = _jobs(photos[:limit])
    rejected += doubles
    _prepare(out)
    built = [Look(entry, entry.build()) for entry in styles]
    results = _run(jobs, out, built, settings, workers)
    samples = [sample for result in results for sample in result.samples]
    rejected += [item for result in results for item in result.rejected]
    write_jsonl(out / "rejected.jsonl", [_rejection_row(item) for item in rejected])
    if not samples:
        reason = f"; the first reason: {rejected[0].reason}" if rejected else ""
        raise UserError(f"{labels}: not one sample could be made{reason}")
    samples = split_by_photo(samples, test_share)
    write_manifest(out / "manifest.jsonl", samples)
    return BuildReport(out / "manifest.jsonl", samples, rejected)


def split_by_photo(samples: Sequence[EditSample], test_share: float) -> list[EditSample]:
    """Give whole photos to the split "test", chosen by their content.

    A photo keeps its side when others come or go. Only when that leaves a side empty, one photo
    is moved there.

    Args:
        samples: samples whose provenance has "photo_hash".
        test_share: wished share of test photos, 0 to 1.

    Returns:
        The samples with `split` set to "train" or "test", in the same order.
    """
    hashes = sorted({sample.provenance["photo_hash"] for sample in samples}, key=text_hash)
    rank = {photo: int(text_hash(photo)[:8], 16) / 16**8 for photo in hashes}
    test = {photo for photo in hashes if rank[photo] < test_share}
    if test_share > 0 and len(hashes) > 1 and not test:
        test = {hashes[0]}
    if test_share < 1 and len(hashes) > 1 and len(test) == len(hashes):
        test.remove(hashes[-1])
    return [
        dataclasses.replace(
            sample, split="test" if sample.provenance["photo_hash"] in test else "train"
        )
        for sample in samples
    ]


def _jobs(photos: Sequence[LabelledPhoto]) -> tuple[list[PhotoJob], list[Rejection]]:
    """Photos with their content's hash; unreadable ones and copies are turned away."""
    jobs: dict[str, PhotoJob] = {}
    rejected = []
    for photo in photos:
        try:
            key = content_hash(photo)
            if key in jobs:
                first = jobs[key].photo.name
                raise UserError(f"{photo.path}: the same picture as {first}, which is used already")
            jobs[key] = PhotoJob(photo, key)
        except UserError as error:
            rejected.append(Rejection(str(error), photo.name, line=photo.line))
    return list(jobs.values()), rejected


def _prepare(out: Path) -> None:
    """Make the folder and remove temporary files that a killed run has left there."""
    records = [path.name for path in (out / ".cache").glob("*.json")]
    if (out / "manifest.jsonl").exists() and (not records or "scenes.json" in records):
        raise UserError(f"{out}: another data set lies here, give a new folder")
    out.mkdir(parents=True, exist_ok=True)
    for folder in (out, *(out / name for name in ("images", "masks", "targets", ".cache"))):
        for path in folder.glob(".*") if folder.is_dir() else ():
            if _TEMPORARY.fullmatch(path.name):
                path.unlink(missing_ok=True)


def _run(
    jobs: Sequence[PhotoJob],
    out: Path,
    styles: Sequence[Look],
    settings: BuildSettings,
    workers: int | None,
) -> list[PhotoResult]:
    """Each photo's result: from the record of an earlier run, or made now; in the jobs' order."""
    results = {job.hash: _load_record(_record(job, out, styles, settings), out) for job in jobs}
    missing = [job for job in jobs if results[job.hash] is None]
    if workers is None:
        workers = default_workers(len(missing) * len(styles), jobs_per_worker=64)
    work = functools.partial(_photo_samples, out=out, styles=styles, settings=settings)
    done = [result for result in results.values() if result is not None]
    counts = Counter(samples=sum(len(result.samples) for result in done))
    counts["rejected"] = sum(len(result.rejected) for result in done)
    with tqdm(total=len(jobs), initial=len(done), desc="label", unit="photo") as progress:
        for job, result in zip(missing, map_in_order(work, missing, workers), strict=True):
            results[job.hash] = result
            counts.update(samples=len(result.samples), rejected=len(result.rejected))
            progress.set_postfix(counts, refresh=False)
            progress.update()
    return [result for result in results.values() if result is not None]


def _photo_samples(
    job: PhotoJob, out: Path, styles: Sequence[Look], settings: BuildSettings
) -> PhotoResult:
    """Make all samples of one photo and record them."""
    try:
        with one_thread():
            result = make_samples(job, out, styles, settings)
    except UserError as error:
        result = PhotoResult([], [Rejection(str(error), job.photo.name, line=job.photo.line)])
    write_json(_record(job, out, styles, settings), dataclasses.asdict(result))
    return result


def _record(job: PhotoJob, out: Path, styles: Sequence[Look], settings: BuildSettings) -> Path:
    """Where the result is recorded, under a name that hashes all it depends on."""
    return out / ".cache" / f"{job.slug}-{_record_key(job, styles, settings)}.json"


def _record_key(job: PhotoJob, styles: Sequence[Look], settings: BuildSettings) -> str:
    masks = [
        (item.word, _hash_or_none(item.mask), item.source, item.count) for item in job.photo.objects
    ]
    looks = [(style.entry.spec, style.stylizer.fingerprint) for style in styles]
    photo = (job.hash, job.photo.name, str(job.photo.path), job.photo.line, dict(job.photo.facts))
    return settings_hash([REVISION, photo, masks, looks, settings])[:10]


def _hash_or_none(path: Path) -> str | None:
    try:
        return file_hash(path)
    except (OSError, ValueError):  # ValueError: a name no file can have
        return None


def _load_record(record: Path, out: Path) -> PhotoResult | None:
    """The record's result if it is there with all products it names."""
    if not record.exists():
        return None
    try:
        result = _RECORD.validate_python(read_json(record))
    except (UserError, ValidationError):
        return None  # damaged from outside: make it again
    for sample in result.samples:
        files = (sample.context, sample.target, *(region.mask for region in sample.regions))
        if not all((out / file).exists() for file in files):
            return None
    return result


def _rejection_row(item: Rejection) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(item).items() if value is not None}
