"""Which samples of a manifest a run trains on, and for which styles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from regionroute.errors import UserError, nearest
from regionroute.manifest import EditSample, Manifest, Region, StyleSpec, manifest_file
from regionroute.prompts import build_prompt, find_spans

if TYPE_CHECKING:
    from regionroute.config import RunConfig

PART = "part_of"  # provenance of a sample that is one style's part of another


@dataclass(frozen=True)
class Selection:
    """What a run trains on.

    Attributes:
        samples: the split's, each of one trained style; see `one_style_each`.
        styles: one an expert, in the order of the experts.
        skipped: how many samples of the split were left out, by reason.
    """

    samples: list[EditSample]
    styles: list[StyleSpec]
    skipped: dict[str, int]


def select(manifest: Manifest, config: RunConfig) -> Selection:
    """Chooses the samples of the run.

    One expert edits at a time, so a sample whose regions have several styles becomes one of each;
    whole-picture tasks and styles not trained are left out.

    Raises:
        UserError: nothing to train on, or a style that the split does not have.
    """
    where = f"{manifest_file(config.data.manifest)}: split {config.data.split!r}"
    parts, skipped = split_parts(manifest, config.data.split)
    by_style: dict[str, list[EditSample]] = {}
    for part in parts:
        by_style.setdefault(part.regions[0].style, []).append(part)
    if not by_style:
        splits = Counter(sample.split for sample in manifest.samples)
        found = ", ".join(f"{split} ({count})" for split, count in splits.items()) or "nothing"
        raise UserError(
            f"{where} has no sample with regions of one style; the manifest has {found}, choose "
            "data.split among them"
        )
    names = config.experts.styles or sorted(by_style)
    for name in names:
        if name not in by_style:
            raise UserError(
                f"experts.styles: {where} has no style {name!r}, the nearest is "
                f"{nearest(name, by_style)!r}"
            )
    if len(set(names)) < len(names):
        raise UserError(f"experts.styles: {', '.join(names)} names a style twice")
    samples = [part for part in parts if part.regions[0].style in names]
    skipped["style not trained"] = len(parts) - len(samples)
    styles = [StyleSpec(name, _phrase(name, by_style[name])) for name in names]
    return Selection(samples, styles, {reason: n for reason, n in skipped.items() if n})


def split_parts(manifest: Manifest, split: str) -> tuple[list[EditSample], Counter[str]]:
    """A split's samples, each of one style; and how many have none, by reason.

    Raises:
        UserError: several styles, and a phrase is not found in the prompt.
    """
    parts: list[EditSample] = []
    others = Counter[str]()
    for sample in manifest.samples:
        if sample.split == split:
            own = one_style_each(sample, manifest_file(manifest.root))
            others["no region"] += not own
            parts += own
    return parts, others


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


def _phrase(style: str, samples: Sequence[EditSample]) -> str | None:
    """The words that stand for a style in all prompts, None if they are its name or differ."""
    words = {
        sample.prompt[slice(*region.style_span)].casefold()
        for sample in samples
        for region in sample.regions
        if region.style == style and region.style_span
    }
    return words.pop() if len(words) == 1 and words != {style.casefold()} else None


def target_of(manifest: Manifest, sample: EditSample) -> Tensor:
    """A sample's target [3,H,W] in [0,1]; of a part, the source outside its own masks.

    Raises:
        UserError: a picture or a mask is missing, damaged or of another size.
    """
    target = manifest.target(sample)
    if PART not in sample.provenance:
        return target
    return torch.where(manifest.masks(sample).amax(0) > 0.5, target, manifest.context(sample))
