"""Memory, time and disk of a run, estimated from its configuration and the number of GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from regionroute.adapters.style_encoder import FOLDER, SETTINGS_FILE, EncoderSettings
from regionroute.config.deepspeed import GPU_BUCKET, LIVE, zero_section, zero_stage
from regionroute.config.run import SIMILARITY_EXPERTS
from regionroute.data.manifest import load_manifest
from regionroute.data.shards import has_manifest, manifest_file
from regionroute.errors import UserError
from regionroute.files import read_json
from regionroute.planning.sizes import BaseSizes, CachingSizes, caching_sizes, read_sizes
from regionroute.planning.trace import Step, StepShape, Trace, trace_step

if TYPE_CHECKING:
    from regionroute.config.run import OptimConfig, RunConfig

GIB = 2**30
FP32 = 4
LIVE_VALUES = 1_000_000_000  # values ZeRO-3 keeps gathered, DeepSpeed's default
# Optimizer state per trained value: two float32 moments; two 8-bit moments with a scale per 256
# values; for Prodigy also the initial weights and a running sum.
STATE_BYTES = {"adamw": 2 * FP32, "adamw8bit": 2 * (1 + FP32 / 256), "prodigy": 4 * FP32}
STYLES = 4  # if neither the configuration nor a manifest names them


@dataclass(frozen=True)
class Machine:
    """What a run is planned for.

    Attributes:
        gpus: number of GPUs, one process each.
        memory: GiB per GPU.
        reserve: GiB of it that tensors cannot use: driver context, workspaces, fragmentation.
        teraflops: peak of a GPU.
        share: fraction of the peak that a step reaches.
        link: bandwidth between GPUs, GB/s.
    """

    gpus: int
    memory: float
    reserve: float
    teraflops: float
    share: float
    link: float


@dataclass(frozen=True)
class Zero:
    """How DeepSpeed partitions the state of a run.

    Attributes:
        stage: 0 to 3.
        offload_weights: frozen and trained weights stay in host memory (stage 3).
        offload_optimizer: the optimizer state stays in host memory.
        live: values that stage 3 keeps gathered at most.
    """

    stage: int
    offload_weights: bool = False
    offload_optimizer: bool = False
    live: int = LIVE_VALUES


@dataclass(frozen=True)
class Data:
    """The pairs of a run.

    Attributes:
        samples: number of pairs, None if unknown.
        prompts: distinct prompts.
        masks: distinct masks.
        images: distinct images.
        styles: number of styles.
        note: source of the numbers.
    """

    samples: int | None
    prompts: int
    masks: int
    images: int
    styles: int
    note: str


@dataclass(frozen=True)
class Plan:
    """Estimated memory, time and disk of a run.

    Attributes:
        config: the run's.
        machine: what it is planned for.
        base: sizes of its base.
        data: its pairs.
        zero: how DeepSpeed partitions.
        shape: of one backward pass.
        trace: of one backward pass.
        caching: of the encoders.
        memory: what -> bytes on each GPU in a step.
        step: the training step that was traced.
    """

    config: RunConfig
    machine: Machine
    base: BaseSizes
    data: Data
    zero: Zero
    shape: StepShape
    trace: Trace
    caching: CachingSizes
    memory: dict[str, int]
    step: Step

    @property
    def bytes_in_step(self) -> int:
        """Memory per GPU in a training step, reserve included."""
        return sum(self.memory.values()) + self.reserve

    @property
    def bytes_in_caching(self) -> int:
        """Memory per GPU while the cache is filled: the whole base and one image.

        An offloaded transformer takes none.
        """
        caching = self.caching
        frozen = 0 if self.zero.offload_weights else self.trace.frozen_bytes
        return frozen + caching.weights + caching.activations + self.reserve

    @property
    def reserve(self) -> int:
        """Bytes per GPU that tensors cannot use."""
        return round(self.machine.reserve * GIB)

    @property
    def fits(self) -> bool:
        """Whether training and caching fit in the memory of a GPU."""
        return max(self.bytes_in_step, self.bytes_in_caching) <= self.machine.memory * GIB

    @property
    def seconds_computing(self) -> float:
        """Compute time of an optimizer step, at the assumed share of the peak."""
        passes = self.config.train.accumulation
        return passes * self.trace.flops / (self.machine.teraflops * 1e12 * self.machine.share)

    @property
    def seconds_gathering(self) -> float:
        """Communication time of ZeRO-3 per optimizer step, at best hidden by computation."""
        if self.zero.stage < 3 or self.machine.gpus == 1:
            return 0.0
        others = (self.machine.gpus - 1) / self.machine.gpus
        weights = self.trace.frozen_bytes + FP32 * self.trace.trainable
        # Forward and backward each gather all weights; recomputation is part of backward.
        moved = 2 * weights * others * self.config.train.accumulation
        return moved / (self.machine.link * 1e9)

    @property
    def seconds(self) -> float:
        """Time of an optimizer step."""
        return max(self.seconds_computing, self.seconds_gathering)

    @property
    def micro_batch(self) -> int:
        """Pairs per backward pass and GPU."""
        return self.shape.batch


def make_plan(config: RunConfig, machine: Machine, step: Step, data: Data | None = None) -> Plan:
    """Estimates a run on a machine.

    Args:
        config: the run's.
        machine: what it is planned for.
        step: the training step, `train.planned.planned_step`.
        data: counts of the pairs; None: read from the manifest if it exists.

    Raises:
        UserError: an unknown base, a batch that does not divide, a broken manifest or DeepSpeed
            file, targets or blocks that the base does not have.
    """
    if config.base.dtype == "float16":
        raise UserError("base.dtype: float16 overflows in training, use bfloat16 or float32")
    base = read_sizes(config.base.name)
    data = data or read_data(config)
    shape = step_shape(config, base, data, machine.gpus)
    zero = read_zero(config)
    trace = trace_step(base.parts["transformer"], config, shape, step, base.autoencoder)
    resolution = config.data.resolution or base.settings.resolution
    dtype = getattr(torch, config.base.dtype)
    caching = caching_sizes(base, dtype, resolution, shape.text[0])
    memory = step_memory(trace, zero, machine.gpus, config.optim)
    return Plan(config, machine, base, data, zero, shape, trace, caching, memory, step)


def step_shape(config: RunConfig, base: BaseSizes, data: Data, gpus: int) -> StepShape:
    """Sizes of one backward pass on one GPU.

    Raises:
        UserError: the batch does not divide evenly.
    """
    train, parts = config.train, base.parts["transformer"]
    micro, rest = divmod(train.global_batch, gpus * train.accumulation)
    if rest or not micro:
        raise UserError(
            f"train.global_batch={train.global_batch} does not divide by {gpus} GPUs x "
            f"train.accumulation={train.accumulation}: make it a multiple of "
            f"{gpus * train.accumulation}"
        )
    side = base.latent_size(config.data.resolution or base.settings.resolution)
    similar = config.experts.router == "similarity"
    return StepShape(
        batch=micro,
        latent=(base.latent_channels, side, side),
        text=(
            config.base.max_text_length or base.settings.max_text_length,
            int(parts["joint_attention_dim"]),
        ),
        pooled=base.family.pooled_width(parts),
        experts=config.experts.num_experts or (SIMILARITY_EXPERTS if similar else data.styles),
        style_dim=_style_dim(config, base) if similar else None,
    )


def _style_dim(config: RunConfig, base: BaseSizes) -> int:
    """Width of the style embedding: of the given encoder, else of the released one."""
    settings, folder = EncoderSettings(), config.experts.style_encoder
    place = Path(folder) if folder else base.folder and base.folder / FOLDER
    if place and (place / SETTINGS_FILE).is_file():
        settings = EncoderSettings.model_validate(read_json(place / SETTINGS_FILE))
    return len(settings.levels) * settings.tokens * settings.width


def read_data(config: RunConfig) -> Data:
    """Counts the pairs of the run's manifest; without one, only the styles are known.

    Raises:
        UserError: the manifest is broken.
    """
    named = config.experts.styles
    if not has_manifest(config.data.manifest):
        note = f"no manifest at {config.data.manifest} yet"
        note += "" if named else f", so {STYLES} styles are assumed (experts.styles)"
        return Data(None, 0, 0, 0, len(named or "") or STYLES, note)
    manifest = load_manifest(config.data.manifest)
    samples = [sample for sample in manifest.samples if sample.split == config.data.split]
    styles = {region.style for sample in samples for region in sample.regions}
    return Data(
        samples=len(samples),
        prompts=len({sample.prompt for sample in samples}),
        masks=len({region.mask for sample in samples for region in sample.regions}),
        images=len({file for sample in samples for file in (sample.context, sample.target)}),
        styles=len(named or styles) or STYLES,
        note=str(manifest_file(config.data.manifest)),
    )


def read_zero(config: RunConfig) -> Zero:
    """How DeepSpeed partitions, by ``train.zero_stage``, ``train.offload`` and ``train.deepspeed``.

    Raises:
        UserError: see `regionroute.config.deepspeed.read_deepspeed_file`.
    """
    section = zero_section(config)

    def on_host(key: str) -> bool:
        return (section.get(key) or {}).get("device", "none") in ("cpu", "nvme")

    stage, offload = zero_stage(config), config.train.offload
    return Zero(
        stage=stage,
        offload_weights=stage == 3 and (offload == "all" or on_host("offload_param")),
        offload_optimizer=stage > 0 and (offload != "none" or on_host("offload_optimizer")),
        live=int(section.get(LIVE, LIVE_VALUES)),
    )


def step_memory(trace: Trace, zero: Zero, gpus: int, optim: OptimConfig) -> dict[str, int]:
    """Bytes per GPU in a training step (Rajbhandari et al., arXiv:1910.02054).

    Trained values are float32. Without ZeRO each has a gradient and optimizer state. ZeRO 1
    partitions the state and a copy of the weights, ZeRO 2 also the gradients, which pass through a
    bucket, ZeRO 3 all weights, which are gathered while they are used.

    Args:
        trace: of a backward pass; its activations are over weights and whole gradients.
        zero: how DeepSpeed partitions.
        gpus: number of GPUs.
        optim: the optimizer and the moving average.
    """
    trained = FP32 * trace.trainable
    bucket = FP32 * min(trace.trainable, GPU_BUCKET) if zero.stage else 0
    weights = {"frozen weights": trace.frozen_bytes, "adapters": trained}
    if zero.stage == 3:
        share = 0 if zero.offload_weights else 1 / gpus
        width = trace.frozen_bytes / trace.frozen
        live = min(zero.live, trace.frozen) * width
        weights = {
            "frozen weights, a share": round(share * trace.frozen_bytes),
            "weights gathered for use": round(live if gpus > 1 or not share else 0),
            "adapters, a share": round(share * trained),
        }
    gradients = trained if zero.stage < 2 else trained // gpus
    states = round(STATE_BYTES[optim.name] * trace.trainable)
    states = states if zero.stage == 0 else (states + trained) // gpus
    loss_networks = {"decoder and network of the perceptual loss": trace.loss_bytes}
    average = {"moving average": trained if zero.stage < 3 else trained // gpus}
    return {
        **weights,
        "gradients": gradients + bucket,
        "optimizer state": 0 if zero.offload_optimizer else states,
        **(average if optim.ema else {}),
        **(loss_networks if trace.loss_bytes else {}),
        "activations": trace.activations,
    }


def cache_bytes(base: BaseSizes, shape: StepShape, config: RunConfig) -> dict[str, int]:
    """Bytes on disk of one cached image, one prompt and one mask, without file headers."""
    channels, height, width = shape.latent
    tokens, states = shape.text
    each = getattr(torch, config.base.dtype).itemsize
    return {
        "image": channels * height * width * each,
        "prompt": (tokens * states + shape.pooled) * each,
        "mask": FP32 * (height * width + shape.image_tokens),
    }


def disk_bytes(plan: Plan) -> dict[str, int]:
    """Bytes of a run's whole cache by kind; empty while the number of pairs is not known."""
    data, each = plan.data, cache_bytes(plan.base, plan.shape, plan.config)
    if data.samples is None:
        return {}
    return {
        "images": data.images * each["image"],
        "prompts": data.prompts * each["prompt"],
        "masks": data.masks * each["mask"],
    }
