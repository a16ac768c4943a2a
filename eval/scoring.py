"""Goes through the samples once and scores every method: rows, in batches of equal size.

Every (sample, method) pair gives exactly one row: its numbers, or the sentence that says why there
are none. Nothing is dropped.
"""

import math
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from eval.edits import CEILING, FLOOR, Edit, edit_path, load_edit, map_path
from eval.metrics import EvalBatch, SampleMetric
from regionroute.errors import UserError
from regionroute.manifest import EditSample, Manifest, Region

Row = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """A sample with its pictures.

    Attributes:
        index: place in the manifest's selection.
        sample: the manifest's row.
        content: [3,H,W].
        target: [3,H,W].
        region_masks: [S,1,H,W].
    """

    index: int
    sample: EditSample
    content: Tensor
    target: Tensor
    region_masks: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.content.shape[1], self.content.shape[2]

    @property
    def mask(self) -> Tensor:
        """Union of the regions: [1,H,W]."""
        return self.region_masks.amax(0)


def select_split(manifest: Manifest, split: str) -> list[EditSample]:
    """The samples of a split.

    Raises:
        UserError: there are none.
    """
    samples = [sample for sample in manifest.samples if split in (sample.split, "all")]
    if not samples:
        there = ", ".join(sorted({sample.split for sample in manifest.samples})) or "none"
        raise UserError(
            f"--split {split}: no such samples in {manifest.root}, splits there: {there} (or all)"
        )
    return samples


def load_source(manifest: Manifest, index: int, sample: EditSample) -> Source:
    """Reads a sample's own pictures.

    Raises:
        UserError: one is missing, damaged or of another size, or a mask is empty.
    """
    if not sample.regions:
        raise UserError(f"sample {sample.id}: it has no region, regional scores need a mask")
    source = Source(
        index,
        sample,
        manifest.context(sample),
        manifest.target(sample),
        manifest.masks(sample),
    )
    for region, mask in zip(sample.regions, source.region_masks, strict=True):
        if not mask.any():
            raise UserError(f"{manifest.path(region.mask)}: the mask is empty, nothing to score")
    return source


class Scorer:
    """Scores methods on a manifest's samples.

    Args:
        manifest: where the samples are.
        methods: {name: folder of edits}; floor and ceiling are added here.
        metrics: see :func:`eval.metrics.build_metrics`.
        out: the folder that gets the rows; file names in rows are relative to it.
        device: where the metrics run.
        on_problem: gets one line for each failure.
    """

    def __init__(
        self,
        manifest: Manifest,
        methods: dict[str, Path],
        metrics: Sequence[SampleMetric],
        out: Path,
        device: str | torch.device = "cpu",
        on_problem: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.manifest = manifest
        self.folders: dict[str, Path | None] = {FLOOR: None, **methods, CEILING: None}
        self.metrics = metrics
        self.out = out
        self.device = device
        self.on_problem = on_problem

    def score(self, samples: Sequence[EditSample], batch_size: int = 16) -> list[Row]:
        """One row for each sample and method, samples in their order, memory independent of it."""
        rows: list[tuple[int, Row]] = []
        waiting: dict[tuple[int, int], list[Source]] = defaultdict(list)
        for index, sample in enumerate(tqdm(samples, desc="scoring", unit="sample")):
            try:
                source = load_source(self.manifest, index, sample)
            except UserError as error:
                self.on_problem(f"every method: {error}")
                rows += [(index, self._row(sample, name, str(error))) for name in self.folders]
                continue
            waiting[source.size].append(source)
            if len(waiting[source.size]) == batch_size:
                rows += self._score_batch(waiting.pop(source.size))
        for sources in waiting.values():
            rows += self._score_batch(sources)
        # The sort is stable: within a sample the methods keep their order.
        return [row for _, row in sorted(rows, key=lambda pair: pair[0])]

    def _score_batch(self, sources: list[Source]) -> list[tuple[int, Row]]:
        rows = []
        for name, folder in self.folders.items():
            kept, edits = [], []
            for source in sources:
                try:
                    edit = _read(name, folder, source)
                except UserError as error:
                    self.on_problem(f"{name}: {error}")
                    rows.append((source.index, self._row(source.sample, name, str(error))))
                    continue
                if edit.map_problem:
                    self.on_problem(f"{name}: map left out: {edit.map_problem}")
                kept.append(source)
                edits.append(edit)
            if kept:
                rows += self._measure(name, kept, edits)
        return rows

    def _measure(
        self, name: str, sources: list[Source], edits: list[Edit]
    ) -> list[tuple[int, Row]]:
        batch = make_batch(sources, edits, self.device)
        columns = {metric.name: metric.update(batch).tolist() for metric in self.metrics}
        rows = []
        for number, (source, edit) in enumerate(zip(sources, edits, strict=True)):
            row = self._row(source.sample, name)
            row["size"] = list(source.size)
            row["mask_share"] = float(source.mask.mean())
            row["metrics"] = {key: _finite(values[number]) for key, values in columns.items()}
            row["map_problem"] = edit.map_problem
            rows.append((source.index, row))
        return rows

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
        """The pictures behind a row, relative to the rows' own folder so that both can move."""
        root = self.manifest.root
        folder = self.folders[method]
        files: dict[str, Any] = {
            "source": self._relative(root / sample.context),
            "target": self._relative(root / sample.target),
            "masks": [self._relative(root / region.mask) for region in sample.regions],
        }
        if folder is not None:
            files["edit"] = self._relative(edit_path(folder, sample.id))
            if map_path(folder, sample.id).exists():
                files["map"] = self._relative(map_path(folder, sample.id))
        return files

    def _relative(self, path: Path) -> str:
        # Without links, because ".." after a link leads elsewhere than the text of the path says.
        real, start = os.path.realpath(path), os.path.realpath(self.out)
        return Path(os.path.relpath(real, start)).as_posix()


def make_batch(
    sources: Sequence[Source], edits: Sequence[Edit], device: str | torch.device = "cpu"
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
    )


def _read(name: str, folder: Path | None, source: Source) -> Edit:
    if folder is not None:
        return load_edit(folder, source.sample.id, source.size)
    return Edit(source.content if name == FLOOR else source.target)


def _phrase(sample: EditSample, region: Region) -> str:
    """The style's words as the prompt has them, else its name."""
    return sample.prompt[slice(*region.style_span)] if region.style_span else region.style


def _finite(value: float) -> float | None:
    """JSON has no NaN; None stands for "not defined here"."""
    return value if math.isfinite(value) else None
