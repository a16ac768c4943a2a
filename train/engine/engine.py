"""The DeepSpeed engine around an adapted transformer: its settings, optimizer and schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from regionroute.adapters import adapter_parameters
from regionroute.config.deepspeed import GPU_BUCKET, read_deepspeed_file, zero_stage
from regionroute.errors import UserError
from train.engine import distributed
from train.engine.distributed import Ranks
from train.engine.optimizers import build_optimizer, check_optimizer

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from regionroute.config.run import OptimConfig, RunConfig


class EngineModel:
    """The engine as a transformer: calls go through DeepSpeed, all else to the model itself.

    ZeRO-3 gathers weights around the engine's own forward, so every call has to pass it, while
    code that reads ``transformer.config`` or walks its modules wants the model.
    """

    def __init__(self, engine: DeepSpeedEngine) -> None:
        self.engine = engine

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102 (the transformer's)
        return self.engine(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine.module, name)


def build_engine(transformer: nn.Module, config: RunConfig, ranks: Ranks) -> DeepSpeedEngine:
    """Wraps an adapted transformer; only the adapters are optimised.

    Raises:
        UserError: the batch cannot be shared evenly, or the DeepSpeed file is not usable.
    """
    import deepspeed

    parameters = adapter_parameters(transformer)
    optimizer = build_optimizer(parameters, config.optim)
    settings = engine_settings(config, ranks.world, sum(p.numel() for p in parameters))
    try:
        with distributed.quiet():
            engine, *_ = deepspeed.initialize(
                model=transformer,
                model_parameters=parameters,
                optimizer=optimizer,
                lr_scheduler=lambda inner: LambdaLR(inner, learning_rate_factor(config)),
                config=settings,
                dist_init_required=False,
            )
    except ValidationError as error:
        if not config.train.deepspeed:
            raise
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(
            f"train.deepspeed: {config.train.deepspeed}: DeepSpeed refuses it "
            f"({error.title}, {key}: {first['msg']})"
        ) from error
    return engine


def engine_settings(config: RunConfig, world: int, trainable: int) -> dict[str, Any]:
    """DeepSpeed's own configuration for a run.

    There is no bf16 section on purpose: a frozen base in bfloat16 carries float32 adapters, so
    the optimizer sees float32 alone and needs no second copy of the weights.

    Args:
        config: the run's.
        world: number of processes.
        trainable: number of trained values; communication buffers need not be larger.

    Raises:
        UserError: see `build_engine`.
    """
    train = config.train
    stage = zero_stage(config)
    check_optimizer(config.optim, stage, world)
    if train.compile and stage == 3:
        raise UserError(
            "train.compile: ZeRO stage 3 gathers weights inside the blocks, where the compiler "
            "cannot follow: set train.compile=false or take a lower stage"
        )
    micro, rest = divmod(train.global_batch, world * train.accumulation)
    if rest:
        raise UserError(
            f"train.global_batch={train.global_batch} cannot be shared by {world} processes x "
            f"train.accumulation={train.accumulation}: make it a multiple of "
            f"{world * train.accumulation}"
        )
    bucket = max(1, min(trainable, GPU_BUCKET))
    settings: dict[str, Any] = {
        "train_batch_size": train.global_batch,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": train.accumulation,
        "gradient_clipping": config.optim.clip,
        "zero_optimization": {
            "stage": train.zero_stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            **_offload(train.offload),
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # DeepSpeed's own CPU Adam compiles for a minute
        "steps_per_print": None,
    }
    return merged(settings, read_deepspeed_file(train.deepspeed)) if train.deepspeed else settings


def _offload(what: str) -> dict[str, Any]:
    """DeepSpeed's keys for what waits in the host's memory."""
    host = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    keys = {
        "none": (),
        "optimizer": ("offload_optimizer",),
        "all": ("offload_optimizer", "offload_param"),
    }
    return {key: host for key in keys[what]}


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Two nested dicts as one; where both have a value, `above` wins."""
    result = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def learning_rate_factor(config: RunConfig) -> Callable[[int], float]:
    """The learning rate of a step (counted from 0) as a factor of ``optim.lr``."""
    optim, steps = config.optim, config.train.steps

    def factor(step: int) -> float:
        if step < optim.warmup:
            return (step + 1) / optim.warmup
        if optim.schedule == "constant":
            return 1.0
        progress = min(1.0, (step - optim.warmup) / max(1, steps - optim.warmup))
        if optim.schedule == "linear":
            return 1 - progress
        return (1 + math.cos(math.pi * progress)) / 2

    return factor


def apply_optimizer_settings(engine: DeepSpeedEngine, config: RunConfig) -> None:
    """Puts the configuration's learning rate, betas, ... in place of those a checkpoint brought.

    DeepSpeed and PyTorch restore the numbers of the run that wrote the checkpoint, and would
    silently ignore a changed configuration.
    """
    optim: OptimConfig = config.optim
    scheduler = engine.lr_scheduler
    scheduler.base_lrs = [optim.lr] * len(scheduler.base_lrs)
    lr = optim.lr * learning_rate_factor(config)(scheduler.last_epoch)
    for group in engine.optimizer.param_groups:
        group.update(
            lr=lr,
            initial_lr=optim.lr,
            betas=tuple(optim.betas),
            eps=optim.eps,
            weight_decay=optim.weight_decay,
        )


def gradient_norm(engine: DeepSpeedEngine) -> float | None:
    """Norm of the reduced gradient before the step, where DeepSpeed does not keep it itself.

    Without ZeRO every process holds the whole reduced gradient between backward and step; ZeRO's
    optimizers know the norm once they have stepped (`engine.get_global_grad_norm`).
    """
    if engine.zero_optimization():
        return None
    gradients = [p.grad for p in adapter_parameters(engine.module) if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))
