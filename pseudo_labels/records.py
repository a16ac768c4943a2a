"""Records of finished photos, named by a hash of everything they depend on."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from pseudo_labels.curate.judge import CAPTION, QUESTIONS
from pseudo_labels.job import REVISION, BuildSettings, BuiltStyle, PhotoJob, PhotoResult
from pseudo_labels.segment.weights import fingerprint
from regionroute.data.startup.contents import is_unchanged
from regionroute.errors import UserError
from regionroute.files import file_hash, read_json, settings_hash
from regionroute.remote import with_urls

_RECORD = TypeAdapter(PhotoResult)
_RECORD_REVISION = 2  # raise when the content of records changes


def record_file(
    job: PhotoJob, out: Path, styles: Sequence[BuiltStyle], settings: BuildSettings
) -> Path:
    """File of the result; its name hashes everything the result depends on."""
    return out / ".cache" / f"{job.slug}-{_key(job, styles, settings)}.json"


def _key(job: PhotoJob, styles: Sequence[BuiltStyle], settings: BuildSettings) -> str:
    objects = [
        (item.word, _hash_or_none(item.mask), item.outline, item.box, item.source, item.count)
        for item in job.photo.objects
    ]
    finder = settings.find.fingerprint() if not all(i.masked for i in job.photo.objects) else None
    judge = [fingerprint(settings.judge.model), QUESTIONS, CAPTION] if settings.judge else None
    named = [(style.entry.spec, style.stylizer.fingerprint) for style in styles]
    path = with_urls(str(job.photo.path))
    photo = (job.hash, job.photo.name, path, job.photo.line, dict(job.photo.facts))
    revisions = [REVISION, _RECORD_REVISION]
    return settings_hash([revisions, photo, objects, finder, judge, named, settings])[:10]


def _hash_or_none(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return file_hash(path)
    except (OSError, ValueError):  # ValueError: a name no file can have
        return None


def load_record(record: Path, out: Path) -> PhotoResult | None:
    """The recorded result, if the record and all products it names exist.

    What it says of products that were changed since is left out.
    """
    if not record.exists():
        return None
    try:
        result = _RECORD.validate_python(read_json(record))
    except (UserError, ValidationError):
        return None  # damaged: make it again
    for sample in result.samples:
        if not all((out / file).exists() for file in sample.files):
            return None
    since = record.stat().st_mtime_ns
    same = [image for image in result.images if is_unchanged(out / image.path, image.bytes, since)]
    return dataclasses.replace(result, images=same)
