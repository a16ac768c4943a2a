"""What a run reads before it computes: base, manifest, samples, and every mistake in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from regionroute.attention import AttentionPlan
from regionroute.config.deepspeed import zero_stage
from regionroute.data.manifest import Manifest, load_manifest, manifest_file
from regionroute.errors import UserError
from regionroute.models.backbone import Backbone
from regionroute.models.loading import load_base
from train.data.cache import Cache, CacheEntry
from train.data.caching import bucket_remark, of_one_size, seen_of
from train.data.dataset import TrainingExample, TrainingExamples
from train.data.encode import Encoder, model_size
from train.data.files import Files
from train.data.packed import packed_examples, sizes_of
from train.data.references import References, find_style_pictures, without_style_words
from train.data.selection import Selection, select
from train.engine.distributed import Ranks
from train.engine.engine import engine_settings
from train.monitor.previews import choose
from train.monitor.trackers import check_trackers
from train.monitor.validation import choose_held_out
from train.step import recorder_of

if TYPE_CHECKING:
    from regionroute.config.run import RunConfig
    from regionroute.data.manifest import EditSample

PREVIEW_CHOICE = 8  # previews are chosen among that many times as many, of one size


@dataclass
class Inputs:
    """A run's base and data, checked; nothing is encoded yet.

    Attributes:
        extra: further samples whose tensors are needed: those of previews and validation.
    """

    backbone: Backbone
    manifest: Manifest
    selection: Selection
    examples: TrainingExamples
    shown: list[EditSample]
    shown_examples: list[TrainingExample]
    held_out: list[TrainingExample]
    extra: list[EditSample]
    encoder: Encoder
    remarks: list[str]
    references: References | None

    def entries(self) -> Iterator[CacheEntry]:
        """All that the cache has to hold, one after another."""
        yield from self.encoder.entries(chain(self.extra, self.selection.samples))
        yield from self.references.entries() if self.references else []

    def keys(self) -> dict[str, np.ndarray]:
        """The keys of `entries` by kind, uint64, some repeated."""
        keys = dict(self.examples.keys())
        others = self.references.entries() if self.references else []
        for entry in chain(self.encoder.entries(self.extra), others):
            number = np.array([int(entry.key, 16)], np.uint64)
            keys[entry.kind] = np.concatenate([keys.get(entry.kind, number[:0]), number])
        return keys


def load_inputs(
    config: RunConfig, ranks: Ranks, cache: Cache, files: Files, *, skeleton: bool = False
) -> Inputs:
    """Reads manifest and base and finds every mistake that needs no computing.

    Args:
        config: the run's.
        ranks: this process's place.
        cache: of encoded images and prompts.
        files: what is known of the images' files.
        skeleton: leaves the transformer's weights out, which encoding does not need.

    Raises:
        UserError: anything the user can fix.
    """
    if config.base.dtype == "float16":
        raise UserError("base.dtype: float16 overflows in training, use bfloat16 or float32")
    _refuse_zero_3(config, config.base.quantize)
    engine_settings(config, ranks.world, 1)
    check_trackers(config.train.trackers)
    manifest = load_manifest(config.data.manifest)
    selection = select(manifest, config)
    dtype = getattr(torch, config.base.dtype)
    quantize = config.base.quantize
    # Layers are quantised as they reach the device; all else waits for `place`.
    where = ranks.device if quantize else "cpu"
    backbone = load_base(
        config.base.name, dtype, where, quantize, config.base.revision, skeleton=skeleton
    )
    _refuse_zero_3(config, backbone.quantized)
    backbone.settings = _settings(backbone, config)
    _check_layers(backbone, config)
    references = _references(config, selection, cache, ranks)
    encoder = Encoder(backbone, manifest, None, files)
    if not config.data.buckets:
        encoder.size = model_size(backbone, _sizes(manifest, selection, files))
    selection, lost = seen_of(encoder, selection)
    shown, held_out = _aside(config, manifest, selection, encoder)
    if references:
        selection = replace(selection, samples=selection.samples.changed(without_style_words))
        shown, held_out = ([*map(without_style_words, part)] for part in (shown, held_out))
    expert = {style.name: index for index, style in enumerate(selection.styles)}

    def example(sample: EditSample) -> TrainingExample:
        return encoder.example(sample, expert[sample.regions[0].style])

    if manifest.columns is not None and references is None:
        examples = packed_examples(encoder, selection.samples, manifest.columns, expert)
    else:
        bar = tqdm(
            selection.samples, "reading pairs", unit="pair", disable=not ranks.main, leave=False
        )
        examples = TrainingExamples(map(example, bar))
    return Inputs(
        backbone,
        manifest,
        selection,
        examples,
        shown,
        [*map(example, shown)],
        [*map(example, held_out)],
        [*shown, *held_out],
        encoder,
        _remarks(config, backbone, selection, bucket_remark(examples, lost), references),
        references,
    )


def _refuse_zero_3(config: RunConfig, quantized: str | None) -> None:
    if quantized and zero_stage(config) == 3:
        raise UserError(
            "base.quantize: ZeRO-3 cannot share quantised weights, use train.zero_stage=2 or "
            "leave base.quantize null and give a base in full precision"
        )


def _sizes(manifest: Manifest, selection: Selection, files: Files) -> set[tuple[int, int]]:
    """The sizes (H,W) of the selection's images."""
    if manifest.columns is not None:
        return set(sizes_of(manifest.columns, selection.samples.rows)[0])
    return {files.of(manifest.path(sample.context)).size for sample in selection.samples}


def _aside(
    config: RunConfig, manifest: Manifest, selection: Selection, encoder: Encoder
) -> tuple[list[EditSample], list[EditSample]]:
    """The samples of previews, of one size, and of the validation."""
    shown: list[EditSample] = []
    if config.train.preview_every:
        found = choose(manifest, selection.styles, config.train.previews * PREVIEW_CHOICE)
        shown = of_one_size(encoder, found, config.train.previews)
    return shown, choose_held_out(manifest, config, selection.styles)


def _references(
    config: RunConfig, selection: Selection, cache: Cache, ranks: Ranks
) -> References | None:
    """The example images, where they choose the experts."""
    if config.experts.router != "similarity":
        return None
    styles = [style.name for style in selection.styles]
    manifest = manifest_file(config.data.manifest)
    encoder, pictures = find_style_pictures(
        config.experts, config.base.name, manifest, config.data.split, styles
    )
    return References(encoder, pictures, styles, cache, ranks.device)


def _settings(backbone: Backbone, config: RunConfig) -> Any:
    """The base's settings under the run's resolution and text length."""
    settings = backbone.settings
    length = config.base.max_text_length or settings.max_text_length
    if length > 512:
        raise UserError(f"base.max_text_length={length}: the pipelines read at most 512 tokens")
    resolution = config.data.resolution or settings.resolution
    return replace(settings, max_text_length=length, resolution=resolution)


def _check_layers(backbone: Backbone, config: RunConfig) -> None:
    """Refuses layer names the base does not have before anything is encoded."""
    one = torch.ones(1, 1, dtype=torch.bool)
    plan = AttentionPlan(one.long()[..., None] - 1, torch.ones(1, 1, 1, 1), one, 1, 1)
    with recorder_of(config).recording(backbone.transformer, plan):
        pass


def _remarks(
    config: RunConfig,
    backbone: Backbone,
    selection: Selection,
    pictures: str,
    references: References | None,
) -> list[str]:
    names = ", ".join(style.name for style in selection.styles)
    remarks = [
        f"{len(selection.samples)} samples of split {config.data.split!r}, experts for {names}, "
        f"{pictures}"
    ]
    if references and references.chosen:
        remarks.append(
            f"{len(references.chosen)} pairs have the example image that `label --references` "
            "chose, the others draw one"
        )
    if backbone.distilled:
        remarks.append(
            f"warning: base {backbone.name} is distilled to few steps, and experts trained on it "
            "can turn images grey (DiffSynth-Studio #1313): train on the base it was distilled "
            "from, such as FLUX.2-klein-base-4B; its experts fit both"
        )
    for reason, count in selection.skipped.items():
        remarks.append(f"{count} samples are skipped: {reason}")
    return remarks
