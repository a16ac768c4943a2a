"""From photos to training pairs: the resumable pipeline that writes a manifest.

    OUT/images/    photos at the working size          (contexts)
    OUT/masks/     one mask per photo and object
    OUT/targets/   the photo with that object restyled
    OUT/manifest.jsonl, OUT/rejected.jsonl, OUT/review.html
    OUT/contents.npy     hashes and sizes of these images, which training then need not read
    OUT/metadata.jsonl   the same pairs for the image-folder loader of Hugging Face datasets
    OUT/exclude.txt      ids of samples that were excluded on the review page
    OUT/.cache/    one record per photo

Every product is named by a hash of everything it depends on and written under a temporary name, so
an existing product is complete and current. An interrupted or repeated run makes only what is
missing, and a changed setting redoes only what it affects. Products of other settings are kept.
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pseudo_labels.curate.filters import first_alike
from pseudo_labels.curate.references import add_references
from pseudo_labels.job import (
    CROP,
    BuildSettings,
    BuiltStyle,
    PhotoJob,
    PhotoResult,
    rejection,
    write_keeping_mtime,
)
from pseudo_labels.photo_worker import PhotoTask, hash_photos, label_photos
from pseudo_labels.review.exclusions import EXCLUDED_FILE, OLD_FILE, read_excluded
from pseudo_labels.review.page import write_review
from pseudo_labels.segment.given import LabelledPhoto, Rejection
from pseudo_labels.stylize.registry import StyleEntry
from regionroute.data.manifest import EditSample, write_manifest
from regionroute.data.startup.contents import FILE as CONTENTS
from regionroute.data.startup.contents import ImageContent, read_content, write_contents
from regionroute.engines.base import EngineSettings
from regionroute.errors import UserError
from regionroute.files import text_hash, write_jsonl
from regionroute.remote import is_left_over

MANY = 100  # photos, from which on a share of them by content is near enough


@dataclass(frozen=True)
class BuildReport:
    """Result of a build.

    Attributes:
        manifest: the manifest.
        samples: its samples.
        rejected: photos, objects and samples that were not used, with reasons.
    """

    manifest: Path
    samples: list[EditSample]
    rejected: list[Rejection]


@dataclass(frozen=True)
class PhotoSource:
    """Photos to label.

    Attributes:
        name: its name in messages.
        photos: the photos.
        rejected: what was wrong with others.
    """

    name: str
    photos: list[LabelledPhoto]
    rejected: list[Rejection]


def build(
    source: PhotoSource,
    styles: Sequence[StyleEntry],
    out: Path,
    settings: BuildSettings,
    *,
    test_share: float = 0.2,
    hold_out_styles: Sequence[str] = (),
    limit: int | None = None,
    engine: EngineSettings | None = None,
    encoder: str | None = None,
    styles_per_photo: int | None = None,
) -> BuildReport:
    """Make every (photo, object, style) pair of a source.

    Args:
        source: photos with words, masks or boxes (`pseudo_labels.segment.given`).
        styles: the styles; each photo is restyled once per style, whatever the number of objects.
        out: folder of the data set, made if missing.
        settings: sizes, limits, and how objects are found.
        test_share: share of the photos whose samples go to the split "test".
        hold_out_styles: all samples of these styles go to the split "test".
        limit: use only this many photos, the first ones.
        engine: where photos are labelled, None for processes of this machine.
        encoder: image encoder that picks a style reference for each sample, None for none.
        styles_per_photo: restyle each photo in this many styles, which take turns; None: in all.

    Returns:
        The samples, and what was rejected and why.

    Raises:
        UserError: no sample could be made, or a network cannot be loaded.
    """
    engine = engine or EngineSettings()
    jobs, doubles = _jobs(source.photos[:limit], engine)
    rejected = [*source.rejected, *doubles]
    _prepare(out)
    built = [BuiltStyle(entry, entry.build()) for entry in styles]
    tasks = [PhotoTask(job, _turn(len(built), i, styles_per_photo)) for i, job in enumerate(jobs)]
    results = label_photos(tasks, out, built, settings, engine)
    if engine.on_ray:  # workers may have died
        _remove_temporary(out)
    samples, alike = _distinct(jobs, results, settings.limits.max_alike)
    found = [item for result in results for item in result.rejected] + alike
    rejected += found
    if (out / OLD_FILE).exists():
        print(f"{out / OLD_FILE}: read as {EXCLUDED_FILE}, its name now", file=sys.stderr)
    samples, excluded = _without_excluded(samples, read_excluded(out))
    rejected += excluded
    write_keeping_mtime(
        out / "rejected.jsonl", write_jsonl, [_rejection_row(item) for item in rejected]
    )
    if not samples:
        reasons = [*found, *rejected]  # those of photos before those of other files
        reason = f"; the first reason: {reasons[0].reason}" if reasons else ""
        raise UserError(f"{source.name}: no sample could be made{reason}")
    samples = hold_out(split_by_photo(samples, test_share), hold_out_styles)
    samples = [s for s in samples if s.split == "train" or not (s.whole or CROP in s.provenance)]
    if encoder is not None:
        samples = add_references(samples, out, encoder, settings.find.device)
    write_keeping_mtime(
        out / "metadata.jsonl", write_jsonl, [_metadata(sample) for sample in samples]
    )
    write_review(out, samples, rejected)
    write_keeping_mtime(out / CONTENTS, write_contents, _contents(out, samples, results))
    write_keeping_mtime(out / "manifest.jsonl", write_manifest, samples)
    return BuildReport(out / "manifest.jsonl", samples, rejected)


def _contents(
    out: Path, samples: Sequence[EditSample], results: Sequence[PhotoResult]
) -> list[ImageContent]:
    """What the files of some samples hold; those that no worker has hashed are hashed here."""
    known = {image.path: image for result in results for image in result.images}
    files = dict.fromkeys(file for sample in samples for file in sample.files)
    return [known.get(file) or read_content(out, file) for file in files]


def _distinct(
    jobs: Sequence[PhotoJob], results: Sequence[PhotoResult], most: int
) -> tuple[list[EditSample], list[Rejection]]:
    """Samples without those of near-duplicate photos."""
    kept: list[tuple[str, str]] = []
    samples: list[EditSample] = []
    rejected = []
    for job, result in zip(jobs, results, strict=True):
        hashes = [found for found, _ in kept]
        double = first_alike(result.look, hashes, most) if result.look else None
        if double is not None:
            first = kept[double][1]
            rejected.append(rejection(job, f"near-duplicate of {first}, which is used"))
            continue
        if result.look and result.samples:
            kept.append((result.look, job.photo.name))
        samples += result.samples
    return samples, rejected


def _without_excluded(
    samples: Sequence[EditSample], excluded: frozenset[str]
) -> tuple[list[EditSample], list[Rejection]]:
    """Samples that are not excluded; one of several objects is excluded with any of its parts."""
    kept, rejected = [], []
    for sample in samples:
        parts = {sample.id, *sample.provenance.get("parts", ())}
        if parts & excluded:
            facts = sample.provenance
            word = ", ".join(region.object for region in sample.regions)
            style = ", ".join(region.style for region in sample.regions)
            reason = "excluded on the review page"
            rejected.append(Rejection(reason, facts["photo"], word, style, sample=sample.id))
        else:
            kept.append(sample)
    return kept, rejected


def _metadata(sample: EditSample) -> dict[str, Any]:
    """A sample as a row of an image folder: every key that ends in file_name is an image."""
    return {
        "file_name": sample.context,
        "target_file_name": sample.target,
        "mask_file_name": sample.regions[0].mask,
        "id": sample.id,
        "prompt": sample.prompt,
        "object": ", ".join(region.object for region in sample.regions),
        "style": ", ".join(region.style for region in sample.regions),
        "split": sample.split,
    }


def split_by_photo(samples: Sequence[EditSample], test_share: float) -> list[EditSample]:
    """Give whole photos to the split "test", chosen by their content.

    From `MANY` photos on, a photo keeps its split when others are added or removed, and the share
    is met about. Of fewer photos the share is exact. No split is empty if it can be avoided.

    Args:
        samples: samples whose provenance has "photo_hash".
        test_share: intended share of test photos, 0 to 1.

    Returns:
        The samples with `split` set to "train" or "test", in the same order.
    """
    hashes = sorted({sample.provenance["photo_hash"] for sample in samples}, key=text_hash)
    ranks = [int(text_hash(photo)[:8], 16) / 16**8 for photo in hashes]
    exact = round(test_share * len(hashes))
    count = exact if len(hashes) < MANY else sum(rank < test_share for rank in ranks)
    if 0 < test_share < 1 and len(hashes) > 1:
        count = min(max(1, count), len(hashes) - 1)
    test = set(hashes[:count])
    return [
        dataclasses.replace(
            sample, split="test" if sample.provenance["photo_hash"] in test else "train"
        )
        for sample in samples
    ]


def hold_out(samples: Sequence[EditSample], styles: Sequence[str]) -> list[EditSample]:
    """Give every sample with a region in one of `styles` to the split "test".

    Then no style of the split "train" is among them: the split by style of StyleExpert (188 seen,
    21 unseen styles).
    """
    held = frozenset(styles)
    return [
        dataclasses.replace(sample, split="test")
        if any(region.style in held for region in sample.regions)
        else sample
        for sample in samples
    ]


def _jobs(
    photos: Sequence[LabelledPhoto], engine: EngineSettings
) -> tuple[list[PhotoJob], list[Rejection]]:
    """Photos with the hashes of their content; unreadable ones and copies are rejected."""
    jobs: dict[str, PhotoJob] = {}
    rejected = []
    for photo, key in zip(photos, hash_photos(photos, engine), strict=True):
        if isinstance(key, Rejection):
            rejected.append(key)
        elif key in jobs:
            reason = f"{photo.path}: the same image as {jobs[key].photo.name}, which is used"
            rejected.append(Rejection(reason, photo.name, line=photo.line or None))
        else:
            jobs[key] = PhotoJob(photo, key)
    return list(jobs.values()), rejected


def _prepare(out: Path) -> None:
    """Make the folder, without the temporary files of a killed run."""
    records = [path.name for path in (out / ".cache").glob("*.json")]
    if (out / "manifest.jsonl").exists() and (not records or "scenes.json" in records):
        raise UserError(f"{out}: this folder holds another data set, give a new one")
    out.mkdir(parents=True, exist_ok=True)
    _remove_temporary(out)


def _remove_temporary(out: Path) -> None:
    """Remove what killed processes left half written."""
    folders = [out / name for name in ("images", "masks", "targets", ".cache")]
    folders += [path for path in (out / ".cache").glob("*") if path.is_dir()]
    for folder in (out, *folders):
        for path in folder.glob(".*") if folder.is_dir() else ():
            if is_left_over(path):
                path.unlink(missing_ok=True)


def _turn(styles: int, number: int, count: int | None) -> tuple[int, ...]:
    """Numbers of the `count` styles of photo `number`, in the file's order; all if it is None."""
    if count is None or count >= styles:
        return tuple(range(styles))
    return tuple(sorted({(number * count + turn) % styles for turn in range(count)}))


def _rejection_row(item: Rejection) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(item).items() if value is not None}
