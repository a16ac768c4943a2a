"""Changes to a configuration that does not fit, each with its own estimate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from regionroute.planning.estimate import Plan, make_plan, step_memory
from regionroute.planning.trace import trace_step

if TYPE_CHECKING:
    from regionroute.config.run import RunConfig


@dataclass(frozen=True)
class Remedy:
    """A change of the configuration and the plan it leads to.

    Attributes:
        setting: as on the command line.
        why: effect and cost.
        plan: estimate with the change.
    """

    setting: str
    why: str
    plan: Plan


Change = tuple[str, str, Callable[[Plan], "RunConfig | None"]]


def remedies(plan: Plan) -> list[Remedy]:
    """Single changes that lower the memory of a plan, smallest result first."""
    found = []
    for setting, why, change in _changes(plan):
        config = change(plan)
        if config is not None:
            other = make_plan(config, plan.machine, plan.step, plan.data)
            found.append(Remedy(setting, why, other))
    better = [remedy for remedy in found if remedy.plan.bytes_in_step < plan.bytes_in_step]
    return sorted(better, key=lambda remedy: remedy.plan.bytes_in_step)


def _changes(plan: Plan) -> list[Change]:
    micro = plan.micro_batch * plan.config.train.accumulation
    half = (plan.config.data.resolution or plan.base.settings.resolution) // 2
    return [
        ("train.gradient_checkpointing=true", "recomputes blocks, about 4/3 of the time",
         lambda p: None if p.config.train.gradient_checkpointing
         else changed(p.config, "train", gradient_checkpointing=True)),
        ("train.zero_stage=3", "partitions the frozen weights, which are gathered in every pass",
         lambda p: None if p.zero.stage == 3 or p.machine.gpus == 1 or p.config.train.deepspeed
         else changed(p.config, "train", zero_stage=3)),
        (f"train.accumulation={micro}", "one pair per pass, same steps",
         lambda p: None if p.micro_batch == 1
         else changed(p.config, "train", accumulation=micro)),
        ("base.dtype=bfloat16", "half of the frozen weights and activations",
         lambda p: None if p.config.base.dtype == "bfloat16"
         else changed(p.config, "base", dtype="bfloat16")),
        (f"data.resolution={half}", "a quarter of the image tokens, and less detail",
         lambda p: changed(p.config, "data", resolution=half) if half >= 16 else None),
    ]  # fmt: skip


def changed(config: RunConfig, section: str, **values: Any) -> RunConfig:
    """The configuration with other values in one section."""
    part = getattr(config, section).model_copy(update=values)
    return config.model_copy(update={section: part})


def without_supervision(config: RunConfig) -> RunConfig:
    """The configuration with both weights of the supervision at 0."""
    return changed(config, "supervision", focus=0.0, cover=0.0)


def retraced(plan: Plan, config: RunConfig) -> Plan:
    """The plan of a configuration that differs only in how a step is computed."""
    transformer = plan.base.parts["transformer"]
    trace = trace_step(transformer, config, plan.shape, plan.step, plan.base.autoencoder)
    memory = step_memory(trace, plan.zero, plan.machine.gpus, config.optim)
    return dataclasses.replace(plan, config=config, trace=trace, memory=memory)
