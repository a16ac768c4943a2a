"""A plan as text for people and as numbers for programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from regionroute.attention.row_cache import row_cache_bytes
from regionroute.planning.estimate import Plan, cache_bytes, disk_bytes
from regionroute.planning.remedies import changed, remedies, retraced, without_supervision


def numbers(plan: Plan) -> dict[str, Any]:
    """The plan for programs: bytes, seconds and counts."""
    return {
        "base": plan.base.name,
        "gpus": plan.machine.gpus,
        "gpu_memory": plan.machine.memory,
        "parameters": {"frozen": plan.trace.frozen, "trained": plan.trace.trainable},
        "experts": plan.shape.experts,
        "tokens": plan.shape.tokens,
        "micro_batch": plan.micro_batch,
        "accumulation": plan.config.train.accumulation,
        "global_batch": plan.config.train.global_batch,
        "zero_stage": plan.zero.stage,
        "bytes": plan.memory | {"reserve": plan.reserve, "step": plan.bytes_in_step},
        "bytes_while_caching": plan.bytes_in_caching,
        "bytes_stored_in_sparse_edits": stored_in_edits(plan),
        "fits": plan.fits,
        "flops_a_pass": plan.trace.flops,
        "seconds_a_step": plan.seconds,
        "seconds_computing": plan.seconds_computing,
        "seconds_gathering": plan.seconds_gathering,
        "disk_bytes": disk_bytes(plan),
    }


def report(plan: Plan, chip: str) -> Iterator[str]:
    """The plan for people, line by line: what takes long to find out comes last."""
    yield from _what(plan)
    yield ""
    yield from _memory(plan)
    yield ""
    yield from _time(plan, chip)
    yield ""
    yield from _disk(plan)
    yield ""
    yield from _verdict(plan)


def _what(plan: Plan) -> Iterator[str]:
    shape, train, trace = plan.shape, plan.config.train, plan.trace
    side = plan.shape.latent[1] * plan.base.vae_scale
    yield f"{plan.base.name} (sizes: {plan.base.origin}), {plan.config.base.dtype}"
    yield (
        f"{trace.frozen:,} frozen values; {shape.experts} experts of rank "
        f"{plan.config.experts.rank}: {trace.trainable:,} trained values in float32"
    )
    yield (
        f"{side}x{side} pixels or that area: {shape.tokens:,} tokens "
        f"({shape.text[0]} text + 2 x {shape.image_tokens:,} image)"
    )
    yield (
        f"batch {train.global_batch} = {plan.machine.gpus} GPU(s) x {plan.micro_batch} pair(s) "
        f"x {train.accumulation} pass(es), ZeRO stage {plan.zero.stage}"
    )
    yield f"data: {plan.data.note}"


def _memory(plan: Plan) -> Iterator[str]:
    on = plan.config.train.gradient_checkpointing
    yield "memory per GPU in a training step"
    for name, size in plan.memory.items():
        shown = f"activations, checkpointing {'on' if on else 'off'}"
        yield _row(shown if name == "activations" else name, size)
    yield _row("reserve (--reserve)", plan.reserve)
    yield _row("total", plan.bytes_in_step)
    other = retraced(plan, changed(plan.config, "train", gradient_checkpointing=not on))
    yield _row(f"  with checkpointing {'off' if on else 'on'}", other.bytes_in_step)
    supervision = plan.config.supervision
    if supervision.focus or supervision.cover:
        plain = retraced(plan, without_supervision(plan.config))
        extra = plan.trace.activations - plain.trace.activations
        yield _row("  of which supervision", extra)
    yield _row("while caching (base, encoders, one image)", plan.bytes_in_caching)
    yield _row("region-sparse edits store, per object", stored_in_edits(plan))


def stored_in_edits(plan: Plan) -> int:
    """What a region-sparse edit at the run's resolution stores for each object."""
    itemsize = getattr(torch, plan.config.base.dtype).itemsize
    return row_cache_bytes(plan.base.parts["transformer"], plan.shape.tokens, itemsize)


def _time(plan: Plan, chip: str) -> Iterator[str]:
    train, machine = plan.config.train, plan.machine
    yield (
        f"time, at {machine.share:.0%} of the {machine.teraflops:g} TFLOP/s of {chip} "
        "(assumed, --share)"
    )
    yield f"  {'operations per pass':<44}{plan.trace.flops / 1e12:>12,.1f} TFLOP"
    yield f"  {'optimizer step':<44}{plan.seconds:>12.2f} s"
    if plan.seconds_gathering:
        yield f"  {'  computing':<44}{plan.seconds_computing:>12.2f} s"
        yield f"  {'  gathering weights (may be hidden)':<44}{plan.seconds_gathering:>12.2f} s"
    yield f"  {'pairs':<44}{train.global_batch / plan.seconds:>12.2f} per second"
    hours = train.steps * plan.seconds / 3600
    yield f"  {f'{train.steps:,} steps (train.steps)':<44}{hours:>12.1f} hours"


def _disk(plan: Plan) -> Iterator[str]:
    yield "cache on disk, without file headers"
    each = cache_bytes(plan.base, plan.shape, plan.config)
    yield "  " + ", ".join(f"{size / 1e6:,.2f} MB per {name}" for name, size in each.items())
    for name, size in disk_bytes(plan).items():
        yield f"  {name:<44}{size / 1e9:>12,.2f} GB"


def _verdict(plan: Plan) -> Iterator[str]:
    machine = plan.machine
    if plan.fits:
        spare = machine.memory * 2**30 - max(plan.bytes_in_step, plan.bytes_in_caching)
        yield f"fits {machine.memory:g} GiB, {spare / 2**30:.1f} GiB to spare"
        return
    yield f"does not fit {machine.memory:g} GiB"
    if plan.bytes_in_caching > machine.memory * 2**30:
        yield (
            "  caching: fill data.cache on a larger GPU or on the CPU first; a run with a "
            "complete cache still loads the encoders"
        )
    if plan.bytes_in_step > machine.memory * 2**30:
        for remedy in remedies(plan):
            size = remedy.plan.bytes_in_step / 2**30
            enough = "enough" if size <= machine.memory else "not enough alone"
            yield f"  {remedy.setting:<36}{size:>8.1f} GiB, {enough}: {remedy.why}"


def _row(name: str, size: int) -> str:
    return f"  {name:<44}{size / 2**30:>12.2f} GiB"
