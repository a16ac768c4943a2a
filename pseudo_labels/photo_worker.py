"""Labels photos on an engine: which networks a worker loads, and the record of each photo."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from pseudo_labels.job import BuildSettings, BuiltStyle, PhotoJob, PhotoResult, rejection
from pseudo_labels.photo import make_samples
from pseudo_labels.records import load_record, record_file
from pseudo_labels.segment.given import LabelledPhoto, Rejection, content_hash
from regionroute.data.startup.contents import read_content
from regionroute.engines.base import EngineSettings, Lost
from regionroute.engines.local import default_workers, one_thread
from regionroute.engines.run import run
from regionroute.errors import UserError
from regionroute.files import write_json

HASHED_AT_ONCE = 64  # photos
LABELLED_AT_ONCE = 16  # photos at most


@dataclass(frozen=True)
class PhotoTask:
    """A photo and the numbers of the styles it is restyled in."""

    job: PhotoJob
    styles: tuple[int, ...]


@dataclass(frozen=True)
class Needs:
    """What a worker loads before its first photo.

    Attributes:
        words: whether objects are detected by words alone.
        boxes: whether masks are made of boxes.
        styles: numbers of the styles in use.
    """

    words: bool
    boxes: bool
    styles: frozenset[int]

    @classmethod
    def of(cls, tasks: Sequence[PhotoTask], settings: BuildSettings) -> "Needs":
        """The needs of some photos."""
        objects = [item for task in tasks for item in task.job.photo.objects if not item.masked]
        words = settings.find.grounder is not None and any(item.box is None for item in objects)
        boxes = any(item.box is not None for item in objects)
        return cls(words, boxes, frozenset(number for task in tasks for number in task.styles))

    def heavy(self, styles: Sequence[BuiltStyle], settings: BuildSettings) -> bool:
        """Whether a network is used that should not be loaded by several processes."""
        found = settings.judge or ((self.words or self.boxes) and settings.find.heavy)
        return any(styles[number].stylizer.heavy for number in self.styles) or bool(found)

    def load(self, styles: Sequence[BuiltStyle], settings: BuildSettings) -> None:
        """Load all networks: a missing one is one error, not one rejection per photo.

        Raises:
            UserError: one cannot be loaded.
        """
        if self.boxes or (self.words and not settings.find.load_grounder().masks):
            settings.find.load_segmenter()
        if settings.judge is not None:
            settings.judge.load()
        for number in sorted(self.styles):
            styles[number].stylizer.load()


class PhotoWorker:
    """Makes and records the samples of photos.

    Args:
        out: folder of the data set.
        styles: all styles of the build.
        settings: its settings.
        needs: networks to load now.

    Raises:
        UserError: one of them cannot be loaded.
    """

    def __init__(
        self, out: Path, styles: Sequence[BuiltStyle], settings: BuildSettings, needs: Needs
    ) -> None:
        self.out, self.styles, self.settings = out, styles, settings
        needs.load(styles, settings)

    def __call__(self, task: PhotoTask) -> PhotoResult:
        """The photo's result; that of an earlier try whose end nobody heard of is kept."""
        styles = [self.styles[number] for number in task.styles]
        record = record_file(task.job, self.out, styles, self.settings)
        known = load_record(record, self.out)
        if known is not None:
            return known
        try:
            with one_thread():
                result = make_samples(task.job, self.out, styles, self.settings)
            files = sorted({file for sample in result.samples for file in sample.files})
            result.images = [read_content(self.out, file) for file in files]
        except UserError as error:
            result = PhotoResult([], [refused(error, task.job.photo)])
        write_json(record, dataclasses.asdict(result))
        return result


def label_photos(
    tasks: Sequence[PhotoTask],
    out: Path,
    styles: Sequence[BuiltStyle],
    settings: BuildSettings,
    engine: EngineSettings,
) -> list[PhotoResult]:
    """Result of each photo, from the record of an earlier run or made now, in the order of tasks.

    A photo whose worker died each time is rejected; nothing is recorded, so that a later run tries
    it again.

    Raises:
        UserError: a network cannot be loaded, or the engine failed.
    """
    results: list[PhotoResult | None] = []
    for task in tasks:
        own = [styles[number] for number in task.styles]
        results.append(load_record(record_file(task.job, out, own, settings), out))
    missing = [number for number, result in enumerate(results) if result is None]
    needs = Needs.of([tasks[number] for number in missing], settings)
    pairs = sum(len(tasks[number].styles) for number in missing) * (1 + settings.crops)
    heavy = needs.heavy(styles, settings)
    found = run(
        [tasks[number] for number in missing],
        functools.partial(PhotoWorker, out, styles, settings, needs),
        engine,
        workers=default_workers(0 if heavy else pairs, jobs_per_worker=64),
        block=_block(len(missing), engine),
    )
    done = [result for result in results if result is not None]
    counts = Counter(samples=sum(len(result.samples) for result in done))
    counts["rejected"] = sum(len(result.rejected) for result in done)
    with tqdm(total=len(tasks), initial=len(done), desc="label", unit="photo") as progress:
        for place, result in found:
            number = missing[place]
            if isinstance(result, Lost):
                result = PhotoResult([], [rejection(tasks[number].job, result.reason)])
            results[number] = result
            counts.update(samples=len(result.samples), rejected=len(result.rejected))
            progress.set_postfix(counts, refresh=False)
            progress.update()
    return [result for result in results if result is not None]


def _block(photos: int, engine: EngineSettings) -> int:
    """Photos that a worker gets at once: local ones each, those of a cluster more of many."""
    if not engine.on_ray:
        return 1
    return max(1, min(LABELLED_AT_ONCE, photos // (8 * (engine.workers or 8))))


def hash_photos(photos: Sequence[LabelledPhoto], engine: EngineSettings) -> list[str | Rejection]:
    """Content hash of each photo, or why it cannot be read; read by the workers of a cluster."""
    if not engine.on_ray:
        engine = EngineSettings(workers=1)
    hashes: list[str | Rejection] = [""] * len(photos)
    for number, found in run(photos, _hasher, engine, block=HASHED_AT_ONCE):
        photo = photos[number]
        if isinstance(found, Lost):
            found = Rejection(f"{photo.path}: {found.reason}", photo.name, line=photo.line or None)
        hashes[number] = found
    return hashes


def _hasher() -> Callable[[LabelledPhoto], str | Rejection]:
    return _hash_photo


def _hash_photo(photo: LabelledPhoto) -> str | Rejection:
    try:
        return content_hash(photo)
    except UserError as error:
        return refused(error, photo)


def refused(error: UserError, photo: LabelledPhoto) -> Rejection:
    """A photo that cannot be used."""
    return Rejection(str(error), photo.name, line=photo.line or None)
