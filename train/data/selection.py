"""Which samples of a manifest a run trains on, and for which styles."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
import torch
from torch import Tensor

from regionroute.data.manifest import EditSample, Manifest, Region, StyleSpec, manifest_file
from regionroute.data.prompts import build_prompt, find_spans
from regionroute.errors import UserError, nearest
from train.data.packed import style_words

if TYPE_CHECKING:
    from regionroute.config.run import RunConfig
    from regionroute.data.startup.columns import Columns

PART = "part_of"  # provenance of a sample that is one style's part of another


@dataclass(frozen=True)
class Selection:
    """What a run trains on.

    Attributes:
        samples: the split's, each of one trained style; see `one_style_each`.
        styles: one an expert, in the order of the experts.
        skipped: how many samples of the split were omitted, by reason.
    """

    samples: Chosen
    styles: list[StyleSpec]
    skipped: dict[str, int]


def select(manifest: Manifest, config: RunConfig) -> Selection:
    """Chooses the samples of the run.

    One expert edits at a time, so a sample whose regions have several styles becomes one of each;
    whole-picture tasks and styles not trained are omitted.

    Raises:
        UserError: nothing to train on, or a style that the split does not have.
    """
    where = f"{manifest_file(config.data.manifest)}: split {config.data.split!r}"
    found = _Found()
    found.add_all(manifest, config.data.split)
    if not found.words:
        splits = Counter(sample.split for sample in manifest.samples)
        there = ", ".join(f"{split} ({count})" for split, count in splits.items()) or "nothing"
        raise UserError(
            f"{where} has no sample with regions of one style; the manifest has {there}, choose "
            "data.split among them"
        )
    names = config.experts.styles or sorted(found.words)
    for name in names:
        if name not in found.words:
            raise UserError(
                f"experts.styles: {where} has no style {name!r}, the nearest is "
                f"{nearest(name, found.words)!r}"
            )
    if len(set(names)) < len(names):
        raise UserError(f"experts.styles: {', '.join(names)} names a style twice")
    kept = np.isin(found.styles, [found.number_of(name) for name in names])
    rows, parts = np.array(found.rows)[kept], np.array(found.parts)[kept]
    samples = Chosen(manifest.samples, rows, parts, manifest_file(manifest.root))
    skipped = {"no region": found.without, "style not trained": len(kept) - len(samples)}
    if config.data.whole_targets:
        count, samples = len(samples), with_whole_targets(samples, where)
        skipped["whole image, the target of its objects' samples"] = count - len(samples)
    styles = [StyleSpec(name, _phrase(name, found.words[name])) for name in names]
    return Selection(samples, styles, {reason: n for reason, n in skipped.items() if n})


def split_parts(manifest: Manifest, split: str) -> tuple[list[EditSample], Counter[str]]:
    """A split's samples, each of one style; and how many have none, by reason.

    Raises:
        UserError: several styles, and a phrase is not found in the prompt.
    """
    parts: list[EditSample] = []
    others = Counter[str]()
    for sample in samples_of(manifest, split):
        own = one_style_each(sample, manifest_file(manifest.root))
        others["no region"] += not own
        parts += own
    return parts, others


def samples_of(manifest: Manifest, split: str) -> Iterator[EditSample]:
    """A split's samples; of a packed manifest no others are parsed."""
    if manifest.columns is None:
        return (sample for sample in manifest.samples if sample.split == split)
    return (manifest.samples[row] for row in manifest.columns.rows_of(split).tolist())


class Chosen(Sequence[EditSample]):
    """Samples of a manifest, or parts of them, put together when they are asked for.

    Args:
        source: the manifest's.
        rows: place of each in `source`, [n].
        parts: which of its parts (`one_style_each`) it is, [n].
        where: names the manifest in errors.
        change: made to each.
    """

    def __init__(
        self,
        source: Sequence[EditSample],
        rows: np.ndarray,
        parts: np.ndarray,
        where: Path,
        change: Callable[[EditSample], EditSample] | None = None,
    ) -> None:
        self._source, self._rows, self._parts = source, rows, parts
        self._where, self._change = where, change

    @property
    def rows(self) -> np.ndarray:
        """Place of each in the manifest, [n]."""
        return self._rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> EditSample: ...
    @overload
    def __getitem__(self, place: slice) -> list[EditSample]: ...
    def __getitem__(self, place: int | slice) -> EditSample | list[EditSample]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        sample = self._source[int(self._rows[place])]
        part = one_style_each(sample, self._where)[int(self._parts[place])]
        return self._change(part) if self._change else part

    def only(self, places: Sequence[int] | np.ndarray) -> Chosen:
        """Some of them."""
        index = np.asarray(places, dtype=np.int64)
        return Chosen(
            self._source, self._rows[index], self._parts[index], self._where, self._change
        )

    def changed(self, change: Callable[[EditSample], EditSample]) -> Chosen:
        """The same with a change to each, after those made before."""
        before = self._change
        both = change if before is None else lambda sample: change(before(sample))
        return Chosen(self._source, self._rows, self._parts, self._where, both)


def with_whole_targets(samples: Chosen, where: str) -> Chosen:
    """The samples of objects, each with the wholly restyled photo for its target.

    Args:
        samples: of objects and of whole images, see `regionroute.data.manifest.WHOLE`.
        where: names them in errors.

    Raises:
        UserError: a photo is not there wholly restyled, or there is no object.
    """
    targets = {_photo_and_style(sample): sample.target for sample in samples if sample.whole}
    objects = samples.only([i for i, sample in enumerate(samples) if not sample.whole])
    if not objects:
        raise UserError(f"data.whole_targets: {where} has samples of whole images only")
    for sample in objects:
        if _photo_and_style(sample) not in targets:
            raise UserError(
                f"data.whole_targets: {where} lacks the wholly restyled photo of sample "
                f"{sample.id!r}: label with --whole, or set data.whole_targets=false"
            )

    def change(sample: EditSample) -> EditSample:
        facts = {key: value for key, value in sample.provenance.items() if key != PART}
        return replace(sample, target=targets[_photo_and_style(sample)], provenance=facts)

    return objects.changed(change)


def _photo_and_style(sample: EditSample) -> tuple[str, str]:
    return sample.context, sample.regions[0].style


class _Found:
    """Parts of samples as they are found: where they are, and in which words their styles."""

    def __init__(self) -> None:
        self.rows, self.parts, self.styles = array("q"), array("i"), array("i")
        self.words: dict[str, set[str]] = {}  # of each style, two different ones at most
        self.without = 0
        self._number: dict[str, int] = {}

    def number_of(self, style: str) -> int:
        """The style's number in `styles`."""
        return self._number[style]

    def add_all(self, manifest: Manifest, split: str) -> None:
        """Adds a split's samples; of a packed manifest only those are parsed that have to be."""
        where = manifest_file(manifest.root)
        if manifest.columns is None:
            for row, sample in enumerate(manifest.samples):
                if sample.split == split:
                    self.add(row, one_style_each(sample, where))
            return
        rows = manifest.columns.rows_of(split)
        plain = manifest.columns.numbers["regions"][rows] == 1
        self._add_plain(manifest.columns, rows[plain])
        for row in rows[~plain].tolist():
            self.add(row, one_style_each(manifest.samples[row], where))
        order = np.argsort(self.rows, kind="stable")
        for name in ("rows", "parts", "styles"):
            column = getattr(self, name)
            setattr(self, name, array(column.typecode, np.asarray(column)[order].tobytes()))

    def _add_plain(self, columns: Columns, rows: np.ndarray) -> None:
        """Adds rows of one object."""
        codes = columns.codes["style"][rows]
        for style, words in style_words(columns, rows):
            known = self.words.setdefault(style, set())
            if len(known) < 2:
                known.add(words)
        names = columns.texts["style"]
        numbers = np.zeros(len(names), np.int32)
        for code in np.unique(codes).tolist():
            self.words.setdefault(names[code], set())
            numbers[code] = self._number.setdefault(names[code], len(self._number))
        self.rows.frombytes(rows.astype(np.int64).tobytes())
        self.parts.frombytes(np.zeros(len(rows), np.int32).tobytes())
        self.styles.frombytes(numbers[codes].tobytes())

    def add(self, row: int, parts: Sequence[EditSample]) -> None:
        self.without += not parts
        for number, part in enumerate(parts):
            style = part.regions[0].style
            words = self.words.setdefault(style, set())
            self.rows.append(row)
            self.parts.append(number)
            self.styles.append(self._number.setdefault(style, len(self._number)))
            for region in part.regions:
                if region.style_span and len(words) < 2:
                    words.add(part.prompt[slice(*region.style_span)].casefold())


def one_style_each(sample: EditSample, where: Path) -> list[EditSample]:
    """A sample with several styles as one for each, with a prompt for its own objects alone.

    The file of their target is the sample's; `target_of` puts the source back where objects of
    other styles were restyled.

    Args:
        sample: with any number of regions.
        where: names the manifest in errors.

    Returns:
        The sample itself if it has one style; nothing if it has no region.

    Raises:
        UserError: several styles, and a phrase is not found in the prompt.
    """
    groups: dict[str, list[Region]] = {}
    for region in sample.regions:
        groups.setdefault(region.style, []).append(region)
    if len(groups) == 1:
        return [sample]
    parts = []
    for style, regions in groups.items():
        try:
            pairs = [_phrases(sample.prompt, region) for region in regions]
        except UserError as error:
            raise UserError(f"{where}: sample {sample.id!r}: {error}") from error
        prompt = build_prompt(pairs)
        spans = zip(regions, prompt.object_spans, prompt.style_spans, strict=True)
        own = tuple(replace(r, object_span=o, style_span=s) for r, o, s in spans)
        parts.append(
            replace(
                sample,
                id=f"{sample.id}:{style}",
                regions=own,
                prompt=prompt.text,
                provenance=sample.provenance | {PART: sample.id},
            )
        )
    return parts


def _phrases(prompt: str, region: Region) -> tuple[str, str]:
    """The words for a region's object and style as a prompt has them."""
    if region.object_span and region.style_span:
        return prompt[slice(*region.object_span)], prompt[slice(*region.style_span)]
    objects, styles = find_spans(prompt, region.object, region.style)
    return prompt[slice(*objects)], prompt[slice(*styles)]


def _phrase(style: str, words: set[str]) -> str | None:
    """The phrase used for a style in all prompts, None if they are its name or differ."""
    return next(iter(words)) if len(words) == 1 and words != {style.casefold()} else None


def target_of(manifest: Manifest, sample: EditSample) -> Tensor:
    """A sample's target [3,H,W] in [0,1]; of a part, the source outside its own masks.

    Raises:
        UserError: an image or a mask is missing, damaged or of another size.
    """
    target = manifest.target(sample)
    if PART not in sample.provenance:
        return target
    return torch.where(manifest.masks(sample).amax(0) > 0.5, target, manifest.context(sample))
