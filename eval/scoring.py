"""Scores every method in one pass over the samples, in batches of images of equal size.

Every (sample, method) pair gives exactly one row: its numbers, or the sentence that says why there
are none. Nothing is dropped. Images that were measured before are not opened again.
"""

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from eval.cache import FileHashes, ValueCache, pair_key, value_name
from eval.edits import (
    CEILING,
    FLOOR,
    FULL_MASK,
    NO_MAP,
    Edit,
    EditFinder,
    Remark,
    load_edit,
    map_path,
)
from eval.metrics import EvalBatch, SampleMetric
from eval.sources import Source, load_source
from regionroute.data.manifest import EditSample, Manifest, Region
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
    ) -> None:
        self.manifest = manifest
        self.folders = methods
        self.methods = [FLOOR, *methods, CEILING]
        self.metrics = metrics
        self.out = out
        self.device = device
        self.on_problem = on_problem
        self.cache = cache or ValueCache(None)
        self._hashes = FileHashes()
        self._names = {m.name: value_name(m.name, m.definition, m.encoder) for m in metrics}

    def score(self, samples: Sequence[EditSample], batch_size: int = 8) -> list[Row]:
        """One row for each sample and method, samples in their order, memory independent of it."""
        self._finder = EditFinder(self.folders, samples)
        rows: list[tuple[int, Row]] = []
        with tqdm(total=len(samples), desc="scoring", unit="sample") as bar:
            for found in self._parts(samples, batch_size):
                rows += found
                bar.update(len({index for index, _ in found}))
        # The sort is stable, and within a sample the methods have an order of their own.
        place = {name: number for number, name in enumerate(self.methods)}
        rows.sort(key=lambda pair: (pair[0], place[pair[1]["method"]]))
        return [row for _, row in rows]

    def _parts(
        self, samples: Sequence[EditSample], batch_size: int
    ) -> Iterator[list[tuple[int, Row]]]:
        """The rows of whole samples, as they are ready."""
        waiting: dict[tuple[int, int], list[Source]] = defaultdict(list)
        for index, sample in enumerate(samples):
            known = self._known(sample)
            if known is not None:
                yield [(index, row) for row in known]
                continue
            try:
                source = load_source(self.manifest, index, sample)
            except UserError as error:
                self.on_problem(f"every method: {error}")
                yield [(index, self._row(sample, name, str(error))) for name in self.methods]
                continue
            waiting[source.size].append(source)
            # Many sizes must not mean many images in memory: then batches are smaller.
            crowded = sum(map(len, waiting.values())) >= 2 * batch_size
            fullest = max(waiting, key=lambda size: len(waiting[size]))
            if crowded or len(waiting[fullest]) == batch_size:
                yield self._score_batch(waiting.pop(fullest))
        for sources in waiting.values():
            yield self._score_batch(sources)

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
            self._tell(row["method"], [Remark(**remark) for remark in row["remarks"]])
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

    def _score_batch(self, sources: list[Source]) -> list[tuple[int, Row]]:
        rows = []
        for method in self.methods:
            kept, edits = [], []
            for source in sources:
                try:
                    edit = self._read(method, source)
                except UserError as error:
                    self.on_problem(f"{method}: {error}")
                    rows.append((source.index, self._row(source.sample, method, str(error))))
                    continue
                self._tell(method, edit.remarks)
                kept.append(source)
                edits.append(edit)
            if kept:
                rows += self._measure(method, kept, edits)
        return rows

    def _read(self, method: str, source: Source) -> Edit:
        if method not in self.folders:
            return Edit(source.content if method == FLOOR else source.target)
        path = self._finder.path(method, source.sample)
        edit = load_edit(path, source.sample.id, source.size)
        if source.mask.all():
            text = f"{source.sample.id}: the mask is full, the background's measures are undefined"
            edit.remarks.append(Remark(FULL_MASK, text))
        return edit

    def _tell(self, method: str, remarks: Sequence[Remark]) -> None:
        for remark in remarks:
            kind = f"{remark.kind}: " if remark.kind == NO_MAP else ""
            self.on_problem(f"{method}: {kind}{remark.text}")

    def _measure(
        self, method: str, sources: list[Source], edits: list[Edit]
    ) -> list[tuple[int, Row]]:
        keys = [self.key(source.sample, method) for source in sources]
        known = [(self.cache.get(key) or {}).get("values", {}) for key in keys]
        batch = make_batch(sources, edits, self.device, method)
        columns = {}
        for metric in self.metrics:
            name = self._names[metric.name]
            if all(name in values for values in known):
                columns[name] = [values[name] for values in known]
            else:
                columns[name] = [_finite(value) for value in metric.update(batch).tolist()]
        records = [
            {
                "size": list(source.size),
                "mask_share": float(source.mask.mean()),
                "remarks": [asdict(remark) for remark in edit.remarks],
                "values": {name: values[number] for name, values in columns.items()},
            }
            for number, (source, edit) in enumerate(zip(sources, edits, strict=True))
        ]
        pairs = zip(keys, records, strict=True)
        self.cache.put({key: record for key, record in pairs if key is not None})
        return [
            (source.index, self._filled(self._row(source.sample, method), record))
            for source, record in zip(sources, records, strict=True)
        ]

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


def make_batch(
    sources: Sequence[Source],
    edits: Sequence[Edit],
    device: str | torch.device = "cpu",
    method: str = "",
) -> EvalBatch:
    """Stacks samples of one size; see :class:`eval.metrics.EvalBatch`."""
    samples = [source.sample for source in sources]
    return EvalBatch(
        ids=[sample.id for sample in samples],
        content=torch.stack([source.content for source in sources]).to(device),
        output=torch.stack([edit.image for edit in edits]).to(device),
        target=torch.stack([source.target for source in sources]).to(device),
        mask=torch.stack([source.mask for source in sources]).to(device),
        region_masks=[source.region_masks.to(device) for source in sources],
        styles=[tuple(_phrase(sample, region) for region in sample.regions) for sample in samples],
        labels=[tuple(region.object for region in sample.regions) for sample in samples],
        region_maps=[
            None if edit.region_map is None else edit.region_map.to(device) for edit in edits
        ],
        style_names=[tuple(region.style for region in sample.regions) for sample in samples],
        prompts=[sample.prompt for sample in samples],
        method=method,
    )


def _phrase(sample: EditSample, region: Region) -> str:
    """The style's words as the prompt has them, else its name."""
    return sample.prompt[slice(*region.style_span)] if region.style_span else region.style


def _finite(value: float) -> float | None:
    """JSON has no NaN; None stands for "not defined here"."""
    return value if math.isfinite(value) else None
