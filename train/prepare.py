"""Everything between a configuration and the first step: checks, caching, experts, engine."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regionroute.adapters import (
    SimilarityRouter,
    adapter_parameters,
    inject,
)
from regionroute.adapters.files.formats import read_experts
from regionroute.adapters.style_encoder import encoder_identity
from regionroute.compat import whole_size
from regionroute.config.deepspeed import zero_stage
from regionroute.config.run import SIMILARITY_EXPERTS, save_config
from regionroute.data.shards import manifest_file
from regionroute.errors import UserError
from regionroute.files import text_hash
from regionroute.models.bundled import experts_folder
from train.data.cache import Cache
from train.data.caching import hash_files, provide
from train.data.dataset import TrainingData, seeded
from train.data.encode import identity, release_encoders
from train.data.files import Files
from train.data.order import BlockShuffle
from train.data.streamed import is_url, open_cache
from train.engine import checkpoint, distributed
from train.engine.distributed import Ranks
from train.engine.ema import MovingAverage
from train.engine.engine import build_engine
from train.engine.placement import place
from train.engine.resume import Start, find_start, load_adapters_alone, restore
from train.export import experts_writer
from train.inputs import Inputs, load_inputs
from train.monitor.logs import Reporter
from train.monitor.previews import Previews
from train.monitor.speed import Speed, speed_of
from train.monitor.trackers import open_trackers
from train.monitor.validation import Validation
from train.perceptual import PerceptualLoss
from train.trainer import Trainer
from train.warm_start import finished_experts, start_from

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from regionroute.config.run import RunConfig
    from train.monitor.trackers import Tracker


def build_trainer(config: RunConfig, ranks: Ranks) -> Trainer:
    """Loads, checks and caches all a run needs and continues from its newest checkpoint.

    Raises:
        UserError: anything the user can fix, the same on all processes.
    """
    output = Path(config.output)
    inputs, cache, files = _read(config, ranks)
    config = _with_commit(config, inputs)
    perceptual = distributed.agree(lambda: _perceptual(config, inputs))
    if ranks.main:
        files.save()
    facts = run_facts(config, inputs, ranks)
    place(inputs.backbone, config, ranks)
    provide(cache, inputs.keys(), inputs.entries(), ranks)
    if inputs.references:
        inputs.references.release_encoder()
    previews = bool(config.train.preview_every) and ranks.main
    keep_vae = previews or perceptual is not None
    release_encoders(inputs.backbone, keep_vae=keep_vae, previews=previews)

    start = find_start(config, facts, ranks)
    engine = _engine(config, inputs, start, ranks)
    average = MovingAverage(engine.module, config.optim.ema) if config.optim.ema else None
    state, remarks = restore(engine, start, config, facts, average)
    data = _data(inputs, cache, config)
    if ranks.main:
        save_config(config, output)
    vae = inputs.backbone.vae if perceptual else None
    reporter = _reporter(config, state.step, data, engine, ranks, vae)
    for remark in [*inputs.remarks, *remarks]:
        reporter.note(remark)
    held_out = Validation(config, inputs.held_out, cache, inputs.references)
    return Trainer(
        config, ranks, engine, data, state, reporter,
        write_experts=experts_writer(
            config, inputs, num_experts(config, inputs), engine, reporter, state.changes
        ),
        previews=_previews(config, inputs, cache),
        average=average,
        validation=held_out if inputs.held_out else None,
        perceptual=perceptual,
    )  # fmt: skip


def fill_cache(config: RunConfig, ranks: Ranks) -> None:
    """Encodes all that a run reads, without the transformer's weights, and trains nothing.

    Raises:
        UserError: anything the user can fix, the same on all processes.
    """
    inputs, cache, files = _read(config, ranks, skeleton=True)
    if ranks.main:
        files.save()
    inputs.backbone.to(ranks.device)
    provide(cache, inputs.keys(), inputs.entries(), ranks)


def _read(
    config: RunConfig, ranks: Ranks, *, skeleton: bool = False
) -> tuple[Inputs, Cache, Files]:
    """Base, data and cache of a run, checked; nothing is encoded yet."""
    folder, where = Path(config.output) / "cache", config.data.cache
    cache = distributed.agree(lambda: open_cache(where, folder, config.data.stream_memory))
    data = manifest_file(config.data.manifest).parent
    files = Files(folder if where is None or is_url(where) else Path(where), data)
    hash_files(config, files, ranks)
    inputs = distributed.agree(lambda: load_inputs(config, ranks, cache, files, skeleton=skeleton))
    continues = config.train.resume and checkpoint.find(Path(config.output))
    if config.experts.init_from and not continues:
        inputs.remarks.append(distributed.agree(lambda: _first_experts(config, inputs)))
    return inputs, cache, files


def _first_experts(config: RunConfig, inputs: Inputs) -> str:
    """Say which styles start from `experts.init_from`, whose folder is checked."""
    assert config.experts.init_from is not None
    start, own = experts_folder(config.experts.init_from), Path(config.output) / "experts"
    if start.resolve() == own.resolve():
        raise UserError(
            f"experts.init_from={start}: this run would overwrite these experts, set another output"
        )
    styles = [style.name for style in inputs.selection.styles]
    found = finished_experts(config.experts, inputs.backbone.fingerprint, styles)
    read_experts(start, found, found.experts)  # for its errors, before anything is encoded
    if config.experts.init_with == "mean":
        return f"every style starts from the mean of the {len(found.experts)} experts in {start}"
    known = [entry.style for entry in found.experts]
    new = [name for name in styles if name not in known]
    said = f"{', '.join(known)} start from {start}"
    return said if not new else f"{said}; without an expert there: {', '.join(new)}"


def _with_commit(config: RunConfig, inputs: Inputs) -> RunConfig:
    """The settings with the commit that the base was loaded from, if it is on the hub."""
    base = config.base.model_copy(update={"revision": inputs.backbone.revision})
    return config.model_copy(update={"base": base})


def _reporter(
    config: RunConfig,
    start: int,
    data: TrainingData,
    engine: DeepSpeedEngine,
    ranks: Ranks,
    vae: Any | None,
) -> Reporter:
    """Bar, files and trackers, which on the first process alone there are any of."""
    output, train = Path(config.output), config.train

    def prepared() -> tuple[list[Tracker], Speed | None]:
        if not ranks.main:
            return [], None
        batch = data.batch(start, range(engine.train_micro_batch_size_per_gpu()))
        speed = speed_of(config, engine.module, batch, ranks.device, vae)
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


def run_facts(config: RunConfig, inputs: Inputs, ranks: Ranks) -> dict[str, Any]:
    """What a checkpoint must match to be continued.

    Call it while the base is whole: before experts are injected and weights are in pieces.
    """
    references = inputs.references
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
        "references": references and references.identity(),
        "zero_stage": zero_stage(config),
        "optimizer": config.optim.name,
        "world": ranks.world,
        "seed": config.seed,
        "global_batch": config.train.global_batch,
        "samples": text_hash(inputs.examples.digest()),
    }


def num_experts(config: RunConfig, inputs: Inputs) -> int:
    """Experts a layer."""
    if inputs.references is None:
        return len(inputs.selection.styles)
    return config.experts.num_experts or SIMILARITY_EXPERTS


def _engine(config: RunConfig, inputs: Inputs, start: Start, ranks: Ranks) -> DeepSpeedEngine:
    transformer, experts = inputs.backbone.transformer, config.experts
    fingerprint = inputs.backbone.fingerprint
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
    if experts.init_from and start.folder is None:
        styles = [style.name for style in inputs.selection.styles]
        means = inputs.references.means().by_name if inputs.references else None
        distributed.agree(lambda: start_from(transformer, experts, fingerprint, styles, means))
    if config.train.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    if config.train.compile:
        transformer.compile_repeated_blocks()
    load_adapters_alone(transformer, start)
    return build_engine(transformer.train(), config, ranks)


def _data(inputs: Inputs, cache: Cache, config: RunConfig) -> TrainingData:
    data = config.data
    blocks = BlockShuffle(data.shuffle_block, data.shuffle_window, data.shuffle_lanes)
    return TrainingData(
        inputs.examples,
        cache,
        seed=config.seed,
        global_batch=config.train.global_batch,
        flow=config.flow,
        references=inputs.references,
        semantic_channels=inputs.backbone.semantic_channels,
        shuffle=blocks if data.shuffle_block else None,
    )


def _perceptual(config: RunConfig, inputs: Inputs) -> PerceptualLoss | None:
    if config.flow.perceptual.network is None:
        return None
    backbone = inputs.backbone
    decode = partial(backbone.family.decode_latents, backbone.vae)
    return PerceptualLoss(config.flow.perceptual, decode, "flow.perceptual.network=")


def _previews(config: RunConfig, inputs: Inputs, cache: Cache) -> Previews | None:
    if not inputs.shown:
        return None
    count = len(inputs.shown)
    data = TrainingData(
        inputs.shown_examples, cache, seed=config.seed, global_batch=count, flow=config.flow,
        references=inputs.references, semantic_channels=inputs.backbone.semantic_channels,
    )  # fmt: skip
    samples = {sample.id: sample for sample in inputs.shown}
    batch = data.batch(0, range(count))
    return Previews(config, inputs.backbone, inputs.manifest, samples, batch)


def trainable_parameters(trainer: Trainer) -> int:
    """How many values the run trains, also where ZeRO-3 holds them in pieces."""
    parameters = adapter_parameters(trainer.engine.module)
    return sum(whole_size(p).numel() for p in parameters)
