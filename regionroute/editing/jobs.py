"""The edits of a batch, before they are done: what to do, what cannot be done, what was found."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from regionroute.data.images import read_image
from regionroute.editing.outputs import Destination, check_destination
from regionroute.editing.request import EditRequest
from regionroute.errors import UserError
from regionroute.files import check_outputs, known_inputs

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Job:
    """One edit of a batch.

    Attributes:
        name: prefix of its error messages, for example "rows.jsonl:3".
        image: the image to edit.
        destination: where the results go.
        request: what to do.
        facts: further metadata, such as the id.
        style_image: a reference image of the style.
    """

    name: str
    image: Path
    destination: Destination
    request: EditRequest
    facts: dict[str, Any]
    style_image: Path | None = None

    @property
    def inputs(self) -> list[Path]:
        """All files that are read."""
        return [self.image] if self.style_image is None else [self.image, self.style_image]

    def full_request(self) -> EditRequest:
        """The request with its style image, which is read only now.

        Raises:
            UserError: the style image is missing or damaged.
        """
        if self.style_image is None:
            return self.request
        return replace(self.request, style_images=(read_image(self.style_image),))


class Jobs:
    """The edits to do, the problems of those that cannot be done, the warnings of those done.

    Attributes:
        jobs: in the order of the file.
        problems: one sentence each, in the order of discovery.
        warnings: what to look at in an edit that was written, one sentence each.
        notes: what could not be kept of its image, one sentence each.
    """

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.problems: list[str] = []
        self.warnings: list[str] = []
        self.notes: list[str] = []
        self._written: dict[str, str] = {}

    def add(self, job: Job) -> None:
        """Add a job after checking that its results can be written.

        Raises:
            UserError: they cannot, or another job writes the same file.
        """
        check_destination(job.destination, job.inputs)
        files = [os.path.realpath(file) for file in job.destination.files]
        for file, real in zip(job.destination.files, files, strict=True):
            if other := self._written.get(real):
                raise UserError(f"{file}: {other} writes the same file")
        self._written |= dict.fromkeys(files, job.name)
        self.jobs.append(job)

    def check_inputs(self, others: Sequence[Path] = ()) -> None:
        """Refuse the whole batch if one job would overwrite what it or another job reads.

        Args:
            others: further files to keep, such as the batch file.

        Raises:
            UserError: naming the job whose output is an input.
        """
        inputs = known_inputs([*others, *(file for job in self.jobs for file in job.inputs)])
        for job in self.jobs:
            try:
                check_outputs(job.destination.files, inputs)
            except UserError as error:
                raise UserError(f"{job.name}: {error}") from error

    def fail(self, name: str, error: UserError | OSError) -> None:
        """Record why a job cannot be done.

        Raises:
            OSError: the disk is full, so that no other job can be done either.
        """
        if isinstance(error, OSError):
            if error.errno in FULL_DISK:
                raise error
            self.problems.append(f"{name}: {error.filename}: {error.strerror}")
        else:
            text = str(error)
            self.problems.append(text if text.startswith(name) else f"{name}: {text}")

    def warn(self, name: str, warnings: Sequence[str], notes: Sequence[str] = ()) -> None:
        """Record what to look at in an edit that was written, under the job's name."""
        self.warnings += [f"{name}: {warning}" for warning in warnings]
        self.notes += [f"{name}: {note}" for note in notes]

    def take(self, others: Jobs) -> None:
        """Take over problems, warnings and notes of jobs that were done elsewhere."""
        self.problems += others.problems
        self.warnings += others.warnings
        self.notes += others.notes

    def drop_existing(self) -> int:
        """Skip the jobs whose result exists; returns how many."""
        before = len(self.jobs)
        self.jobs = [job for job in self.jobs if not job.destination.image.is_file()]
        return before - len(self.jobs)
