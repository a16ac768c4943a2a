"""Many edits with one model, from rows or a manifest: grouped by size, bad rows reported."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from regionroute.data.images import LoadedImage, image_size, open_image
from regionroute.data.manifest import EditSample, Manifest, manifest_file, parse_rows
from regionroute.data.prompts import Prompt
from regionroute.editing.editor import Editor
from regionroute.editing.inputs import size_batches
from regionroute.editing.jobs import Job, Jobs
from regionroute.editing.outputs import Destination, write_edit
from regionroute.editing.request import EditOptions, EditRequest
from regionroute.engines.base import EngineSettings, Lost
from regionroute.engines.run import run
from regionroute.errors import UserError, nearest
from regionroute.files import numbered_lines, parse_json_line, text_hash
from regionroute.remote import with_urls

ROW_KEYS = {
    "image": str,
    "object": str,
    "style": str,
    "out": str,
    "seed": int,
    "map": str,
    "side_by_side": str,
    "prompt": str,
    "id": str,
    "also": list,
    "style_image": str,
}
KINDS = {str: "a string", int: "an integer", list: "a list"}


def read_rows(path: Path, seed: int = 0) -> Jobs:
    """Read a batch file: JSON objects with image, object, style, out and, optionally, seed.

    Further optional keys: ``map`` and ``side_by_side`` (PNGs), ``prompt`` (which may mark object
    and style instead), ``id``, ``also`` (further [object, style] pairs), ``style_image`` (a
    reference image instead of style). Paths are relative to the file's folder.

    Args:
        path: the file.
        seed: of rows without one.

    Raises:
        UserError: the file is missing, not text, or has no rows.
    """
    jobs = Jobs()
    lines = numbered_lines(path)
    if not lines:
        raise UserError(
            f"{path}: no rows; write one JSON object per line with image, object, style, out"
        )
    for number, line in lines:
        name = f"{path}:{number}"
        try:
            jobs.add(
                _row_job(name, path.parent, {"seed": seed} | parse_json_line(path, number, line))
            )
        except (UserError, OSError) as error:
            jobs.fail(name, error)
    jobs.check_inputs([path])
    return jobs


def manifest_rows(path: Path, split: str, out_dir: Path, seed: int) -> Jobs:
    """One edit per sample of a manifest: all its regions, with the region map.

    Args:
        path: ``manifest.jsonl`` or its folder.
        split: which samples; those whose whole image is restyled are for training only and skipped.
        out_dir: gets ``<id>.png``, ``<id>.json`` and ``<id>.map.png``.
        seed: the noise of a sample depends on it and on the sample's id.

    Raises:
        UserError: no manifest there, or no sample of this split.
    """
    jobs = Jobs()
    file = manifest_file(path)
    manifest = Manifest(file.parent, [])
    splits: set[str] = set()
    files: list[str] = []
    for row in parse_rows(path):
        if isinstance(row, UserError):
            jobs.fail(str(file), row)
            continue
        splits.add(row.split)
        files += [row.context, row.target, *(region.mask for region in row.regions)]
        if row.split != split or row.whole:
            continue
        name = f"{file}: sample {row.id}"
        try:
            jobs.add(_sample_job(name, manifest, row, out_dir, seed))
        except (UserError, OSError) as error:
            jobs.fail(name, error)
    if not jobs.jobs and not jobs.problems:
        known = ", ".join(sorted(splits)) or "none"
        raise UserError(f"{file}: no sample of split {split!r} (there are: {known})")
    jobs.check_inputs([file.parent / name for name in files])
    return jobs


@dataclass
class ChunkReport:
    """The result of some jobs.

    Attributes:
        written: number of images written.
        found: their problems, warnings and notes.
    """

    written: int
    found: Jobs


class ChunkWorker:
    """Edits chunks of a batch, each of one image size, with one model.

    Args:
        load: gives the model.
        options: of all jobs.
        keep_exif: the edits keep the EXIF of their images.
        engine: of which this is a worker.
    """

    def __init__(
        self,
        load: Callable[[], Editor],
        options: EditOptions,
        keep_exif: bool,
        engine: EngineSettings,
    ) -> None:
        self.editor, self.options, self.keep_exif = load(), options, keep_exif
        self.editor.memory_share = engine.memory_share

    def __call__(self, chunk: Sequence[Job]) -> ChunkReport:
        """Edit and write; failures are recorded and the other jobs continue."""
        found = Jobs()
        ready = self._ready(chunk, found)
        if not ready:
            return ChunkReport(0, found)
        results = self.editor.edit_batch(
            [image.rgb for _, image, _ in ready],
            [request for _, _, request in ready],
            self.options,
            want_map=any(job.destination.wants_map for job, _, _ in ready),
        )
        written = 0
        for (job, image, _), result in zip(ready, results, strict=True):
            try:
                write_edit(
                    job.destination, image, result.image, result.region_map,
                    job.facts | result.settings, keep_exif=self.keep_exif,
                )  # fmt: skip
                written += 1
                found.warn(job.name, result.settings.get("warnings", ()), image.notes)
            except (UserError, OSError) as error:
                found.fail(job.name, error)
        return ChunkReport(written, found)

    def _ready(
        self, chunk: Sequence[Job], found: Jobs
    ) -> list[tuple[Job, LoadedImage, EditRequest]]:
        """The jobs that can be done, with what they need."""
        ready = []
        for job in chunk:
            try:
                request = job.full_request()
                self.editor.check(request, self.options)
                image = open_image(job.image)
                self.editor.backbone.fit_size(image.rgb.shape[-2], image.rgb.shape[-1])
                ready.append((job, image, request))
            except (UserError, OSError) as error:
                found.fail(job.name, error)
        return ready


def run_jobs(
    load: Callable[[], Editor],
    jobs: Jobs,
    options: EditOptions,
    batch_size: int = 8,
    keep_exif: bool = False,
    engine: EngineSettings | None = None,
) -> int:
    """Do all jobs; failures are recorded in ``jobs.problems`` and the others continue.

    What to look at in the edits that were written is recorded in ``jobs.warnings``, what could not
    be kept of their images in ``jobs.notes``; both are in the edit's JSON file too.

    Args:
        load: gives the model, in every process that edits; picklable if there are others.
        jobs: see :func:`read_rows`; gains problems, warnings and notes.
        options: of all jobs.
        batch_size: images of one size to edit at a time.
        keep_exif: the edits keep the EXIF of their images.
        engine: where jobs are done, None for this process.

    Returns:
        The number of images written.

    Raises:
        UserError: options that do not allow any edit.
        OSError: the disk is full.
    """
    chunks = _chunks(jobs, batch_size)
    engine = engine or EngineSettings()
    make = functools.partial(ChunkWorker, load, options, keep_exif, engine)
    done = run(chunks, make, engine)
    reports: dict[int, ChunkReport] = {}
    with tqdm(total=len(jobs.jobs), desc="edit", unit="image", disable=None) as bar:
        for number, report in done:
            if isinstance(report, Lost):
                report = _lost(chunks[number], report)
            reports[number] = report
            bar.update(len(chunks[number]))
        bar.update(len(jobs.jobs) - bar.n)  # those whose image could not be opened
    for _, report in sorted(reports.items()):  # in order of the chunks, whoever was first
        jobs.take(report.found)
    return sum(report.written for report in reports.values())


def _lost(chunk: Sequence[Job], lost: Lost) -> ChunkReport:
    """The report of jobs whose worker died."""
    found = Jobs()
    for job in chunk:
        found.fail(job.name, UserError(f"{job.image}: {lost.reason}"))
    return ChunkReport(0, found)


def _chunks(jobs: Jobs, batch_size: int) -> list[list[Job]]:
    """At most ``batch_size`` jobs at a time, of one image size and number of objects."""
    readable, sizes = [], []
    for job in jobs.jobs:
        try:
            sizes.append((*image_size(job.image), len(job.request.pairs)))
            readable.append(job)
        except (UserError, OSError) as error:
            jobs.fail(job.name, error)
    return [[readable[row] for row in rows] for rows in size_batches(sizes, batch_size)]


def _row_job(name: str, folder: Path, row: dict[str, Any]) -> Job:
    for key, value in row.items():
        if key not in ROW_KEYS:
            close = nearest(key, ROW_KEYS)
            raise UserError(f"{name}: unknown key {key!r}, the nearest known one is {close!r}")
        if not isinstance(value, ROW_KEYS[key]) or isinstance(value, bool):
            raise UserError(f"{name}: {key} must be {KINDS[ROW_KEYS[key]]}, not {value!r}")
    has_style_image = "style_image" in row
    if has_style_image and ("style" in row or "also" in row):
        raise UserError(
            f"{name}: style_image takes the place of 'style' and 'also': remove these keys"
        )
    words = () if "prompt" in row else ("object",) if has_style_image else ("object", "style")
    for key in ("image", "out", *words):
        if not row.get(key, "").strip():
            raise UserError(f"{name}: {key} is missing or empty")
    also = row.get("also", [])
    for pair in also:
        if not (isinstance(pair, list) and len(pair) == 2 and all(_is_phrase(x) for x in pair)):
            raise UserError(f'{name}: also must list pairs ["object", "style"], not {pair!r}')
    request = EditRequest(
        row.get("object", ""), row.get("style", ""), row.get("prompt"), row["seed"],
        tuple((words, style) for words, style in also),
    )  # fmt: skip
    image = folder / row["image"]
    more = [folder / row[key] if key in row else None for key in ("map", "side_by_side")]
    destination = Destination(folder / row["out"], *more)
    facts = {key: row[key] for key in ("id", "style_image") if key in row}
    style_image = folder / row["style_image"] if has_style_image else None
    return Job(
        name, image, destination, request, facts | {"image": with_urls(str(image))}, style_image
    )


def _is_phrase(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def sample_request(sample: EditSample, seed: int) -> EditRequest:
    """The edit that a sample with regions describes.

    Args:
        sample: with one region or several.
        seed: the noise depends on it and on the sample's id.
    """
    region = sample.regions[0]
    prompt: str | Prompt | None = None  # several regions get a prompt each
    if len(sample.regions) == 1:
        prompt = sample.prompt
        if region.object_span and region.style_span:
            prompt = Prompt(sample.prompt, (region.object_span,), (region.style_span,))
    # By id, not by position: the same sample gets the same noise in any subset.
    own_seed = (seed + int(text_hash(sample.id)[:8], 16)) % 2**32
    others = tuple((other.object, other.style) for other in sample.regions[1:])
    return EditRequest(region.object, region.style, prompt, own_seed, also=others)


def _sample_job(name: str, manifest: Manifest, sample: EditSample, out_dir: Path, seed: int) -> Job:
    if not sample.regions:
        raise UserError(f"{name}: the sample has no region to edit")
    return Job(
        name=name,
        image=manifest.path(sample.context),
        destination=Destination(out_dir / f"{sample.id}.png", out_dir / f"{sample.id}.map.png"),
        request=sample_request(sample, seed),
        facts={"id": sample.id, "image": sample.context},
    )
