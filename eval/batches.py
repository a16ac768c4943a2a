"""Measures a batch of samples with every method: the part of scoring that needs images.

It depends on the batch alone and changes nothing outside, so that any process may do it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from eval.cache import ValueCache
from eval.edits import CEILING, FLOOR, FULL_MASK, NO_MAP, Edit, Remark, load_edit
from eval.metrics import EvalBatch, SampleMetric
from eval.sources import Source, load_source
from regionroute.data.manifest import EditSample, Manifest, Region
from regionroute.errors import UserError

Record = dict[str, Any]


@dataclass(frozen=True)
class ScoreTask:
    """Samples of one size.

    Attributes:
        samples: place in the selection, and the manifest's row.
        edits: {method: file of each sample, or why there is none}; not of floor and ceiling.
        keys: {method: key of each sample's values in the cache, None where a file is missing}.
        known: {key: values measured before}.
    """

    samples: Sequence[tuple[int, EditSample]]
    edits: Mapping[str, Sequence[Path | str]]
    keys: Mapping[str, Sequence[str | None]]
    known: Mapping[str, Record]


@dataclass
class ScoredBatch:
    """What was measured.

    Attributes:
        rows: place of the sample, method, and the record or the reason why there is none.
        records: {key: record} for the cache.
        lines: what to tell the user.
    """

    rows: list[tuple[int, str, Record | str]] = field(default_factory=list)
    records: dict[str, Record] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def fail(self, index: int, method: str, reason: str) -> None:
        """Note why a sample has no numbers."""
        self.rows.append((index, method, reason))

    def tell(self, method: str, remarks: Sequence[Remark]) -> None:
        """Say what is unusual about an edit."""
        self.lines += [remark_line(method, remark) for remark in remarks]


def remark_line(method: str, remark: Remark) -> str:
    """A remark as it is shown."""
    kind = f"{remark.kind}: " if remark.kind == NO_MAP else ""
    return f"{method}: {kind}{remark.text}"


class BatchScorer:
    """Measures batches.

    Args:
        root: the manifest's folder.
        methods: all methods in their order, floor and ceiling included.
        names: {metric: its name in the cache}.
        load: makes the metrics, and with them loads their networks.
        device: where they run.
    """

    def __init__(
        self,
        root: Path,
        methods: Sequence[str],
        names: Mapping[str, str],
        load: Callable[[], Sequence[SampleMetric]],
        device: str | torch.device = "cpu",
    ) -> None:
        self.manifest = Manifest(root, [])
        self.methods, self.device = methods, device
        self.metrics, self._names = load(), names

    def __call__(self, task: ScoreTask) -> ScoredBatch:
        """Scores a batch."""
        done = ScoredBatch()
        sources: list[tuple[int, Source]] = []
        for place, (index, sample) in enumerate(task.samples):
            try:
                sources.append((place, load_source(self.manifest, index, sample)))
            except UserError as error:
                done.lines.append(f"every method: {error}")
                for method in self.methods:
                    done.fail(index, method, str(error))
        cache = ValueCache(None)
        cache.put(dict(task.known))
        for method in self.methods if sources else ():
            kept, edits = self._edits(method, sources, task, done)
            if kept:
                keys = [task.keys[method][place] for place, _ in kept]
                self._measure(method, [source for _, source in kept], edits, keys, cache, done)
        return done

    def _edits(
        self, method: str, sources: list[tuple[int, Source]], task: ScoreTask, done: ScoredBatch
    ) -> tuple[list[tuple[int, Source]], list[Edit]]:
        """The samples whose edit can be read, and these edits."""
        kept, edits = [], []
        for place, source in sources:
            try:
                edit = self._read(method, source, task.edits.get(method, ()), place)
            except UserError as error:
                done.lines.append(f"{method}: {error}")
                done.fail(source.index, method, str(error))
                continue
            done.tell(method, edit.remarks)
            kept.append((place, source))
            edits.append(edit)
        return kept, edits

    def _read(self, method: str, source: Source, files: Sequence[Path | str], place: int) -> Edit:
        if method in (FLOOR, CEILING):
            return Edit(source.content if method == FLOOR else source.target)
        file = files[place]
        if isinstance(file, str):
            raise UserError(file)
        edit = load_edit(file, source.sample.id, source.size)
        if source.mask.all():
            text = f"{source.sample.id}: the mask is full, the background's measures are undefined"
            edit.remarks.append(Remark(FULL_MASK, text))
        return edit

    def _measure(
        self,
        method: str,
        sources: list[Source],
        edits: list[Edit],
        keys: list[str | None],
        cache: ValueCache,
        done: ScoredBatch,
    ) -> None:
        known = [(cache.get(key) or {}).get("values", {}) for key in keys]
        batch = make_batch(sources, edits, self.device, method)
        columns = {}
        for metric in self.metrics:
            name = self._names[metric.name]
            if all(name in values for values in known):
                columns[name] = [values[name] for values in known]
            else:
                columns[name] = [_finite(value) for value in metric(batch).tolist()]
        for number, (source, edit) in enumerate(zip(sources, edits, strict=True)):
            record = {
                "size": list(source.size),
                "mask_share": float(source.mask.mean()),
                "remarks": [asdict(remark) for remark in edit.remarks],
                "values": {name: values[number] for name, values in columns.items()},
            }
            done.rows.append((source.index, method, record))
            key = keys[number]
            if key is not None:
                done.records[key] = record
        cache.put(done.records)


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
