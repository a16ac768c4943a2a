"""Scores every method in one pass over the samples, in batches of images of equal size.

Every (sample, method) pair gives exactly one row: its numbers, or the sentence that says why there
are none. Nothing is dropped. Images that were measured before are not opened again.
"""

import functools
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from eval.batches import BatchScorer, Record, ScoredBatch, ScoreTask, remark_line
from eval.cache import FileHashes, ValueCache, pair_key, value_name
from eval.edits import CEILING, FLOOR, NO_MAP, EditFinder, Remark, map_path
from eval.metrics import SampleMetric
from regionroute.data.images import image_size
from regionroute.data.manifest import EditSample, Manifest
from regionroute.engines.base import EngineSettings, Lost
from regionroute.engines.run import run
from regionroute.errors import UserError

Row = dict[str, Any]


class Scorer:
    """Scores methods on a manifest's samples.

    Args:
        manifest: where the samples are.
        methods: {name: folder of edits}; floor and ceiling are added here.
        metrics: see :func:`eval.metrics.build_metrics`.
        out: the folder that gets the rows; file names in rows are relative to it.
        device: where the metrics run.
        on_problem: receives one line per failure and per remark.
        cache: of values measured before.
        engine: where batches are measured.
        load: picklable, makes the same metrics in another process; needed if there is any.
    """

    def __init__(
        self,
        manifest: Manifest,
        methods: dict[str, Path],
        metrics: Sequence[SampleMetric],
        out: Path,
        device: str | torch.device = "cpu",
        on_problem: Callable[[str], None] = lambda line: None,
        cache: ValueCache | None = None,
        engine: EngineSettings | None = None,
        load: Callable[[], Sequence[SampleMetric]] | None = None,
    ) -> None:
        self.manifest = manifest
        self.folders = methods
        self.methods = [FLOOR, *methods, CEILING]
        self.out = out
        self.on_problem = on_problem
        self.cache = cache or ValueCache(None)
        self.engine = engine or EngineSettings()
        self._hashes = FileHashes()
        self._names = {m.name: value_name(m.name, m.definition, m.encoder) for m in metrics}
        self._make_worker = functools.partial(
            BatchScorer, manifest.root, self.methods, self._names, load or (lambda: metrics), device
        )

    def score(self, samples: Sequence[EditSample], batch_size: int = 8) -> list[Row]:
        """One row for each sample and method, samples in their order."""
        self._finder = EditFinder(self.folders, samples)
        rows: list[tuple[int, Row]] = []
        with tqdm(total=len(samples), desc="scoring", unit="sample") as bar:
            missing = []
            for index, sample in enumerate(samples):
                known = self._known(sample)
                if known is None:
                    missing.append((index, sample))
                else:
                    rows += [(index, row) for row in known]
                    bar.update()
            tasks = [self._task(batch) for batch in self._batches(missing, batch_size)]
            for number, done in run(tasks, self._make_worker, self.engine):
                if isinstance(done, Lost):
                    done = self._lost(tasks[number], done)
                rows += self._rows(done, samples)
                bar.update(len(tasks[number].samples))
        # The sort is stable, and within a sample the methods have an order of their own.
        place = {name: number for number, name in enumerate(self.methods)}
        rows.sort(key=lambda pair: (pair[0], place[pair[1]["method"]]))
        return [row for _, row in rows]

    def _batches(
        self, samples: Sequence[tuple[int, EditSample]], batch_size: int
    ) -> Iterator[list[tuple[int, EditSample]]]:
        """Samples of one size each; what cannot be opened is by itself."""
        waiting: dict[tuple[int, int], list[tuple[int, EditSample]]] = defaultdict(list)
        for index, sample in samples:
            size = self._size(sample)
            if size is None:
                yield [(index, sample)]
                continue
            waiting[size].append((index, sample))
            # Many sizes must not mean many images in memory: then batches are smaller.
            crowded = sum(map(len, waiting.values())) >= 2 * batch_size
            fullest = max(waiting, key=lambda size: len(waiting[size]))
            if crowded or len(waiting[fullest]) == batch_size:
                yield waiting.pop(fullest)
        yield from waiting.values()

    def _size(self, sample: EditSample) -> tuple[int, int] | None:
        """(height, width) by the header of the context, None for a sample without any use."""
        try:
            return image_size(self.manifest.path(sample.context)) if sample.regions else None
        except UserError:
            return None

    def _task(self, samples: Sequence[tuple[int, EditSample]]) -> ScoreTask:
        """What a worker has to know of some samples."""
        edits: dict[str, list[Path | str]] = {name: [] for name in self.folders}
        keys: dict[str, list[str | None]] = {name: [] for name in self.methods}
        known: dict[str, Record] = {}
        for _, sample in samples:
            for method in self.methods:
                if method in self.folders:
                    edits[method].append(self._edit(method, sample))
                key = self._key(sample, method)
                keys[method].append(key)
                record = self.cache.get(key)
                if key is not None and record is not None:
                    known[key] = record
        return ScoreTask(samples, edits, keys, known)

    def _edit(self, method: str, sample: EditSample) -> Path | str:
        """The file of an edit, or why there is none."""
        try:
            return self._finder.path(method, sample)
        except UserError as error:
            return str(error)

    def _key(self, sample: EditSample, method: str) -> str | None:
        """`key`, None also where a path or a name is wrong: reading it says so."""
        try:
            return self.key(sample, method)
        except UserError:
            return None

    def _lost(self, task: ScoreTask, lost: Lost) -> ScoredBatch:
        """The rows of a batch whose worker died."""
        done = ScoredBatch()
        for index, sample in task.samples:
            done.lines.append(f"every method: sample {sample.id}: {lost.reason}")
            for method in self.methods:
                done.fail(index, method, f"sample {sample.id}: {lost.reason}")
        return done

    def _rows(self, done: ScoredBatch, samples: Sequence[EditSample]) -> Iterator[tuple[int, Row]]:
        """The rows of a batch; its values go to the cache."""
        for line in done.lines:
            self.on_problem(line)
        self.cache.put(done.records)
        for index, method, found in done.rows:
            if isinstance(found, str):
                yield index, self._row(samples[index], method, found)
            else:
                yield index, self._filled(self._row(samples[index], method), found)

    def _known(self, sample: EditSample) -> list[Row] | None:
        """All rows of a sample, if every number of them was measured before."""
        rows = []
        for method in self.methods:
            try:
                record = self.cache.get(self.key(sample, method))
            except UserError:
                return None
            if record is None or not set(self._names.values()) <= set(record["values"]):
                return None
            row = self._row(sample, method)
            rows.append(self._filled(row, record))
        for row in rows:
            for remark in row["remarks"]:
                self.on_problem(remark_line(row["method"], Remark(**remark)))
        return rows

    def key(self, sample: EditSample, method: str) -> str | None:
        """The cache's key of an edit, None where a file of it is missing.

        Raises:
            UserError: a path leads out of the manifest's folder, or the edit's name is not clear.
        """
        names = [sample.context, sample.target, *(region.mask for region in sample.regions)]
        files = [self.manifest.path(name) for name in names]
        if method not in self.folders:
            return pair_key(sample, files, method, self._hashes)
        edit = self._finder.path(method, sample)
        beside = map_path(edit.parent, sample.id)
        files.append(edit)
        files += [path for path in (beside, edit.parent / f"{sample.id}.json") if path.exists()]
        return pair_key(sample, files, "", self._hashes)

    def _filled(self, row: Row, record: dict[str, Any]) -> Row:
        """A row with the numbers of a cache's record."""
        remarks = record["remarks"]
        problem = [remark["text"] for remark in remarks if remark["kind"] == NO_MAP]
        metrics = {name: record["values"][key] for name, key in self._names.items()}
        return {
            **row,
            "size": record["size"],
            "mask_share": record["mask_share"],
            "metrics": metrics,
            "remarks": remarks,
            "map_problem": problem[0] if problem else None,
        }

    def _row(self, sample: EditSample, method: str, error: str | None = None) -> Row:
        regions = sample.regions
        return {
            "id": sample.id,
            "method": method,
            "prompt": sample.prompt,
            "objects": [region.object for region in regions],
            "styles": [region.style for region in regions],
            "flags": list(sample.flags),
            "files": self._files(sample, method),
            "error": error,
        }

    def _files(self, sample: EditSample, method: str) -> dict[str, Any]:
        """The images behind a row, relative to the rows' own folder so that both can move."""
        root = self.manifest.root
        files: dict[str, Any] = {
            "source": self._relative(root / sample.context),
            "target": self._relative(root / sample.target),
            "masks": [self._relative(root / region.mask) for region in sample.regions],
        }
        if method in self.folders:
            try:
                edit = self._finder.path(method, sample)
            except UserError:  # reported where the edit is read
                return files
            files["edit"] = self._relative(edit)
            if map_path(edit.parent, sample.id).exists():
                files["map"] = self._relative(map_path(edit.parent, sample.id))
        return files

    def _relative(self, path: Path) -> str:
        # Without links, because ".." after a link leads elsewhere than the text of the path says.
        real, start = os.path.realpath(path), os.path.realpath(self.out)
        return Path(os.path.relpath(real, start)).as_posix()
