"""Training pairs of a photo: single objects in single styles, and several objects at once."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pseudo_labels.compose import composite
from pseudo_labels.curate.filters import sample_checks, sample_fault
from pseudo_labels.curate.judge import cached_answers, cached_caption
from pseudo_labels.job import (
    CROP,
    REVISION,
    BuildSettings,
    BuiltStyle,
    PhotoJob,
    PhotoObject,
    rejection,
    slug,
    write_once,
)
from pseudo_labels.segment.given import Rejection
from regionroute.data.images import read_image, read_mask
from regionroute.data.manifest import WHOLE, EditSample, Region, mask_box
from regionroute.data.prompts import build_prompt, find_spans, restyle_prompt
from regionroute.files import settings_hash, text_hash

MOST_REGIONS = 3  # objects in one sample
_OF_AN_OBJECT = {"mask_source", "area", "checks"}  # provenance of samples with one object


@dataclass(frozen=True)
class PairMaker:
    """Makes the samples of one photo.

    Attributes:
        job: the photo.
        out: folder of the data set.
        settings: settings of the build.
        content: the photo at the working size, [3, H, W] in [0, 1].
        context: its file.
    """

    job: PhotoJob
    out: Path
    settings: BuildSettings
    content: Tensor
    context: str

    def samples(
        self, style: BuiltStyle, objects: Sequence[PhotoObject], rejected: list[Rejection]
    ) -> list[EditSample]:
        """One sample per object in a style; samples that fail the filters go to `rejected`."""
        kept = []
        for item, file in zip(objects, self._targets(style, objects), strict=True):
            target = read_image(self.out / file)
            word, words = item.segment.word, style.entry.spec.words
            checks: dict[str, Any] = {
                **item.checks,
                **sample_checks(self.content, target, item.segment.mask),
            }
            fault = sample_fault(checks, word, words, self.settings.limits)
            if fault is None and self.settings.judge is not None:
                judge = self.settings.judge
                pair = (self.content, target)
                checks |= cached_answers(self.out, file, pair, item.segment, words, judge)
                fault = judge.fault(checks)
            if fault:
                name = style.entry.spec.name
                rejected.append(rejection(self.job, fault, word, name, checks))
            else:
                kept.append(self._sample(style, item, file, checks))
        return kept

    def _targets(self, style: BuiltStyle, objects: Sequence[PhotoObject]) -> list[str]:
        """One target per object; the photo is restyled once, and only if a target is missing."""
        key = [self.context, *style.stylizer.product_key(), self.settings.feather]
        files = []
        for item in objects:
            stem = f"{Path(item.mask_file).stem}-{slug(style.entry.spec.name)}"
            files.append(f"targets/{stem}-{settings_hash([*key, item.mask_file])[:8]}.png")
        styled = None
        for item, file in zip(objects, files, strict=True):
            if (self.out / file).exists():
                continue
            mask = item.segment.mask
            if styled is None or "mask" in style.stylizer.needs:
                styled = self._styled(style, mask if "mask" in style.stylizer.needs else None)
                if self.settings.whole and "mask" not in style.stylizer.needs:
                    write_once(self.out / self._whole_file(style), styled)
            target = composite(self.content, styled, mask, self.settings.feather)
            write_once(self.out / file, target)
        return files

    def _styled(self, style: BuiltStyle, mask: Tensor | None) -> Tensor:
        """The whole photo in a style; its random seed depends on photo and style alone."""
        seed = int(text_hash(f"{self.job.hash} {style.entry.spec.name}")[:15], 16)
        generator = torch.Generator().manual_seed(seed)
        return style.stylizer.stylize_photo(
            self.job.photo.path, self.content, style.entry.spec, mask=mask, generator=generator
        )

    def whole(self, style: BuiltStyle, single: EditSample) -> EditSample:
        """The whole photo restyled: one region, named "image", that covers everything.

        Experts trained on restyled objects only paint unseen objects poorly.

        Args:
            style: the style.
            single: a sample of an object in it.
        """
        spec, file = style.entry.spec, self._whole_file(style)
        everything = torch.ones_like(self.content[:1])
        mask = f"masks/{self.job.slug}-whole-{settings_hash([self.context])[:8]}.png"
        write_once(self.out / mask, everything)
        if not (self.out / file).exists():
            needed = everything if "mask" in style.stylizer.needs else None
            write_once(self.out / file, self._styled(style, needed))
        text = restyle_prompt(spec.words)
        spans = find_spans(text, "image", spec.words)
        facts = {k: v for k, v in single.provenance.items() if k not in _OF_AN_OBJECT}
        return EditSample(
            id=f"{self.job.slug}-{spec.name}-whole",
            context=self.context,
            target=file,
            regions=(Region("image", spec.name, mask, mask_box(everything), 1.0, *spans),),
            prompt=text,
            flags=(WHOLE,),
            provenance=facts,
        )

    def _whole_file(self, style: BuiltStyle) -> str:
        key = settings_hash([self.context, *style.stylizer.product_key()])[:8]
        return f"targets/{self.job.slug}-whole-{slug(style.entry.spec.name)}-{key}.png"

    def several(
        self, samples: Sequence[EditSample], objects: Sequence[PhotoObject]
    ) -> list[EditSample]:
        """Samples with two or three objects, each in another style.

        Their pixels are those of the single samples; where masks overlap, the later object wins.
        """
        by_object = [
            [s for s in samples if s.regions[0].mask == item.mask_file] for item in objects
        ]
        by_object = [choices for choices in by_object if choices][:MOST_REGIONS]
        if len(by_object) < 2:
            return []
        made: dict[str, EditSample] = {}
        start = int(self.job.hash[:8], 16)  # photos start with different styles
        for turn in range(self.settings.multi):
            parts: list[EditSample] = []
            for place, choices in enumerate(by_object):
                taken = {part.regions[0].style for part in parts}
                first = (start + turn + place) % len(choices)
                ring = [*choices[first:], *choices[:first]]
                parts += [s for s in ring if s.regions[0].style not in taken][:1]
            if len(parts) > 1:
                sample = self._joined(parts)
                made[sample.id] = sample
        return list(made.values())

    def _joined(self, parts: Sequence[EditSample]) -> EditSample:
        """One sample joined from several single samples of this photo."""
        key = settings_hash([REVISION, [part.target for part in parts]])[:8]
        file = f"targets/{self.job.slug}-multi-{key}.png"
        if not (self.out / file).exists():
            target = self.content.clone()
            for part in parts:
                inside = read_mask(self.out / part.regions[0].mask) > 0
                target = torch.where(inside, read_image(self.out / part.target), target)
            write_once(self.out / file, target)
        words = [part.provenance["style_words"] for part in parts]
        prompt = build_prompt(
            [(part.regions[0].object, style) for part, style in zip(parts, words, strict=True)]
        )
        regions = tuple(
            dataclasses.replace(part.regions[0], object_span=span, style_span=style_span)
            for part, span, style_span in zip(
                parts, prompt.object_spans, prompt.style_spans, strict=True
            )
        )
        shared = {
            key: value
            for key, value in parts[0].provenance.items()
            if all(part.provenance.get(key) == value for part in parts)
        }
        return EditSample(
            id=f"{self.job.slug}-multi-{key}",
            context=self.context,
            target=file,
            regions=regions,
            prompt=prompt.text,
            flags=("multi", "regions"),
            provenance=shared | {"parts": [part.id for part in parts]},
        )

    def _sample(
        self, style: BuiltStyle, item: PhotoObject, target: str, checks: dict[str, Any]
    ) -> EditSample:
        spec, segment = style.entry.spec, item.segment
        prompt = build_prompt([(segment.word, spec.words)])
        region = Region(
            object=segment.word,
            style=spec.name,
            mask=item.mask_file,
            box=segment.box,
            score=segment.score,
            object_span=prompt.object_spans[0],
            style_span=prompt.style_spans[0],
        )
        photo = Path(self.job.photo.name)
        provenance = {
            # A relative name only: absolute paths mean nothing on another machine.
            "photo": photo.name if photo.is_absolute() else self.job.photo.name,
            "photo_hash": self.job.hash,
            **({CROP: self.job.crop} if self.job.crop else {}),
            "mask_source": segment.source,
            "stylizer": style.entry.stylizer,
            "stylizer_hash": text_hash(style.stylizer.fingerprint),
            **style.stylizer.remarks,
            **({"networks": style.stylizer.networks} if style.stylizer.networks else {}),
            "style_words": spec.words,
            "settings_hash": settings_hash([REVISION, self.settings]),
            "area": round(segment.area, 4),
            "checks": checks,
            **self.job.photo.facts,
        }
        if self.settings.judge is not None:
            provenance["judge"] = self.settings.judge.load().name
            if self.settings.judge.caption:
                provenance["caption"] = cached_caption(
                    self.out, self.context, self.content, self.settings.judge
                )
        return EditSample(
            id=f"{self.job.slug}-{slug(segment.word)}-{spec.name}",
            context=self.context,
            target=target,
            regions=(region,),
            prompt=prompt.text,
            flags=item.flags,
            provenance=provenance,
        )
