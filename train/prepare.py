"""Everything between a configuration and the first step: checks, caching, experts, engine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from regionroute.adapters import (
    SimilarityRouter,
    adapter_parameters,
    inject,
)
from regionroute.adapters.style_encoder import encoder_identity
from regionroute.attention import AttentionPlan
from regionroute.backbones.kontext import Backbone, load_backbone
from regionroute.config import SIMILARITY_EXPERTS, save_config
from regionroute.errors import UserError
from regionroute.io import image_size, settings_hash, text_hash
from regionroute.manifest import Manifest, manifest_file, read_manifest
from train import distributed
from train.cache import Cache, Entry
from train.data import Example, TrainingData, seeded
from train.distributed import Ranks
from train.ema import MovingAverage
from train.encode import Encoder, identity, model_size, release_encoders
from train.engine import build_engine, engine_settings, zero_stage
from train.export import experts_writer
from train.logs import Reporter
from train.placement import place
from train.previews import Previews, choose
from train.references import References, find_references, without_style_words
from train.resume import Start, find_start, load_adapters_alone, restore
from train.selection import Selection, select
from train.speed import Speed, speed_of
from train.step import recorder_of
from train.trackers import check_trackers, open_trackers
from train.trainer import Trainer
from train.validation import Validation, choose_held_out

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from regionroute.config import RunConfig
    from regionroute.manifest import EditSample
    from train.trackers import Tracker


@dataclass
class Inputs:
    """A run's base and data, checked; nothing is encoded yet."""

    backbone: Backbone
    manifest: Manifest
    selection: Selection
    examples: list[Example]
    shown: list[EditSample]
    shown_examples: list[Example]
    held_out: list[Example]
    entries: list[Entry]
    remarks: list[str]
    references: References | None


def build_trainer(config: RunConfig, ranks: Ranks) -> Trainer:
    """Loads, checks and caches all a run needs and continues from its newest checkpoint.

    Raises:
        UserError: anything the user can mend, the same on all processes.
    """
    output = Path(config.output)
    cache = Cache(Path(config.data.cache) if config.data.cache else output / "cache")
    inputs = distributed.agree(lambda: load_inputs(config, ranks, cache))
    facts = run_facts(config, inputs, ranks)
    place(inputs.backbone, config, ranks)
    distributed.agree(lambda: cache.fill(inputs.entries, rank=ranks.rank, world=ranks.world))
    if inputs.references:
        inputs.references.release_encoder()
    release_encoders(inputs.backbone, keep_vae=bool(config.train.preview_every) and ranks.main)

    start = find_start(config, facts, ranks)
    engine = _engine(config, inputs, start, ranks)
    average = MovingAverage(engine.module, config.optim.ema) if config.optim.ema else None
    state, remarks = restore(engine, start, config, facts, average)
    data = _data(inputs, cache, config)
    if ranks.main:
        save_config(config, output)
    reporter = _reporter(config, state.step, data, engine, ranks)
    for remark in [*inputs.remarks, *remarks]:
        reporter.note(remark)
    held_out = Validation(config, inputs.held_out, cache, inputs.references)
    return Trainer(
        config, ranks, engine, data, state, reporter,
        write_experts=experts_writer(config, inputs, num_experts(config, inputs), engine, reporter),
        previews=_previews(config, inputs, cache),
        average=average,
        validation=held_out if inputs.held_out else None,
    )  # fmt: skip


def _reporter(
    config: RunConfig, start: int, data: TrainingData, engine: DeepSpeedEngine, ranks: Ranks
) -> Reporter:
    """Bar, files and trackers, which on the first process alone there are any of."""
    output, train = Path(config.output), config.train

    def prepared() -> tuple[list[Tracker], Speed | None]:
        if not ranks.main:
            return [], None
        batch = data.batch(start, range(engine.train_micro_batch_size_per_gpu()))
        speed = speed_of(config, engine.module, batch, ranks.device)
        settings = config.model_dump(mode="json")
        return open_trackers(train.trackers, output, start, train.project, settings), speed

    trackers, speed = distributed.agree(prepared)
    return Reporter(
        output,
        start=start,
        steps=train.steps,
        samples=train.global_batch,
        log_every=train.log_every,
        main=ranks.main,
        trackers=trackers,
        speed=speed,
    )


def load_inputs(config: RunConfig, ranks: Ranks, cache: Cache) -> Inputs:
    """Reads manifest and base and finds every mistake that needs no computing.

    Raises:
        UserError: see `build_trainer`.
    """
    if config.base.dtype == "float16":
        raise UserError("base.dtype: float16 overflows in training, use bfloat16 or float32")
    if config.base.quantize and zero_stage(config) == 3:
        raise UserError(
            "base.quantize: ZeRO-3 cannot share quantised weights, use train.zero_stage=2 or "
            "leave base.quantize null"
        )
    engine_settings(config, ranks.world, 1)
    check_trackers(config.train.trackers)
    manifest = read_manifest(config.data.manifest)
    selection = select(manifest, config)
    dtype = getattr(torch, config.base.dtype)
    quantize = config.base.quantize
    # Layers are quantised as they reach the device; all else waits for `place`.
    where = ranks.device if quantize else "cpu"
    backbone = load_backbone(config.base.name, dtype, where, quantize)
    backbone.settings = _settings(backbone, config)
    _check_layers(backbone, config)
    shown = []
    if config.train.preview_every:
        shown = choose(manifest, selection.styles, config.train.previews)
    held_out = choose_held_out(manifest, config, selection.styles)
    references = _references(config, selection, cache, ranks)
    if references:
        selection = replace(selection, samples=[*map(without_style_words, selection.samples)])
        shown, held_out = ([*map(without_style_words, part)] for part in (shown, held_out))
    used = {sample.id: sample for sample in [*selection.samples, *shown, *held_out]}.values()
    sizes = {image_size(manifest.path(sample.context)) for sample in used}
    size, distorted = model_size(backbone, sizes)
    encoder = Encoder(backbone, manifest, size)
    expert = {style.name: index for index, style in enumerate(selection.styles)}
    examples = {
        sample.id: encoder.example(sample, expert[sample.regions[0].style])
        for sample in tqdm(used, "reading pairs", unit="pair", disable=not ranks.main, leave=False)
    }
    return Inputs(
        backbone,
        manifest,
        selection,
        [examples[sample.id] for sample in selection.samples],
        shown,
        [examples[sample.id] for sample in shown],
        [examples[sample.id] for sample in held_out],
        [*encoder.entries, *(references.entries() if references else [])],
        _remarks(config, selection, size, distorted),
        references,
    )


def _references(
    config: RunConfig, selection: Selection, cache: Cache, ranks: Ranks
) -> References | None:
    """The example pictures, where they choose the experts."""
    if config.experts.router != "similarity":
        return None
    styles = [style.name for style in selection.styles]
    manifest = manifest_file(config.data.manifest)
    encoder, pictures = find_references(
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
    config: RunConfig, selection: Selection, size: tuple[int, int], distorted: bool
) -> list[str]:
    names = ", ".join(style.name for style in selection.styles)
    remarks = [
        f"{len(selection.samples)} samples of split {config.data.split!r}, experts for {names}, "
        f"pictures at {size[1]}x{size[0]}"
    ]
    if distorted:
        remarks.append(
            "the pictures have several aspects: all are resized to that square, because the "
            "samples of a batch need one shape"
        )
    for reason, count in selection.skipped.items():
        remarks.append(f"{count} samples are left out: {reason}")
    return remarks


def run_facts(config: RunConfig, inputs: Inputs, ranks: Ranks) -> dict[str, Any]:
    """What a checkpoint must match to be continued.

    Call it while the base is whole: before experts are injected and weights are in pieces.
    """
    references = inputs.references
    rows = [[e.id, e.context, e.target, e.text, *e.masks] for e in inputs.examples]
    return {
        "base_fingerprint": inputs.backbone.fingerprint,
        "base_weights": identity(inputs.backbone.transformer),
        "styles": [style.name for style in inputs.selection.styles],
        "rank": config.experts.rank,
        "alpha": config.experts.alpha,
        "targets": config.experts.targets,
        "shared_rank": config.experts.shared_rank,
        "router": config.experts.router,
        "num_experts": config.experts.num_experts,
        "style_encoder": references and encoder_identity(references.encoder),
        "references": references and text_hash(settings_hash(references.keys)),
        "zero_stage": zero_stage(config),
        "optimizer": config.optim.name,
        "world": ranks.world,
        "seed": config.seed,
        "global_batch": config.train.global_batch,
        "samples": text_hash(settings_hash(rows)),
    }


def num_experts(config: RunConfig, inputs: Inputs) -> int:
    """Experts a layer."""
    if inputs.references is None:
        return len(inputs.selection.styles)
    return config.experts.num_experts or SIMILARITY_EXPERTS


def _engine(config: RunConfig, inputs: Inputs, start: Start, ranks: Ranks) -> DeepSpeedEngine:
    transformer, experts = inputs.backbone.transformer, config.experts
    count, gates = num_experts(config, inputs), seeded("gates", config.seed)
    router = None
    if inputs.references:
        style_dim = inputs.references.embeddings.shape[1]

        def router() -> SimilarityRouter:
            return SimilarityRouter(style_dim, count, experts.top_k, generator=gates)

    inject(
        transformer,
        experts.targets,
        count,
        experts.rank,
        experts.alpha,
        experts.dropout,
        shared_rank=experts.shared_rank,
        router=router,
        generator=seeded("experts", config.seed),
    )
    if config.train.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    if config.train.compile:
        transformer.compile_repeated_blocks()
    load_adapters_alone(transformer, start)
    return build_engine(transformer.train(), config, ranks)


def _data(inputs: Inputs, cache: Cache, config: RunConfig) -> TrainingData:
    return TrainingData(
        inputs.examples,
        cache,
        seed=config.seed,
        global_batch=config.train.global_batch,
        flow=config.flow,
        references=inputs.references,
    )


def _previews(config: RunConfig, inputs: Inputs, cache: Cache) -> Previews | None:
    if not inputs.shown:
        return None
    count = len(inputs.shown)
    data = TrainingData(
        inputs.shown_examples, cache, seed=config.seed, global_batch=count, flow=config.flow,
        references=inputs.references,
    )  # fmt: skip
    samples = {sample.id: sample for sample in inputs.shown}
    batch = data.batch(0, range(count))
    return Previews(config, inputs.backbone, inputs.manifest, samples, batch)


def trainable_parameters(trainer: Trainer) -> int:
    """How many values the run trains, also where ZeRO-3 holds them in pieces."""
    parameters = adapter_parameters(trainer.engine.module)
    return sum(int(getattr(p, "ds_numel", p.numel())) for p in parameters)
