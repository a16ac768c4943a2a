"""``regionroute plan``: what a training run takes, before anything is downloaded or started."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from regionroute.errors import Parser, UserError, command

if TYPE_CHECKING:
    from regionroute.config.run import RunConfig
    from regionroute.planning.estimate import Machine, Plan

EPILOG = """\
examples:
  regionroute plan --config configs/kontext.yaml --gpus 8 --gpu-memory 80
  regionroute plan --config configs/kontext.yaml --chip 4090 train.zero_stage=3
  regionroute plan --config configs/kontext.yaml --gpus 64 --samples 10000000 train.global_batch=64
  regionroute plan --config configs/nano.yaml --chip a100 --json

The training step runs once without numbers: every tensor has its shape and type, none its contents,
so that the memory is that of the step's own operations and the operations are counted, not guessed.
Assumed are the share of the chip's peak (--share), the memory that no tensor gets (--reserve) and
the speed between GPUs (--link). FLUX.1-Kontext needs neither its files nor the network.
Ends with 0 if the run fits, with 1 if not."""

SHARE, RESERVE, LINK = 0.4, 2.0, 50.0


def parser() -> Parser:
    """The arguments; building it imports nothing heavy."""
    from regionroute.config.io import add_config_arguments

    parser = Parser(
        prog="regionroute plan",
        description="Memory, time and disk that a training run takes, and what to change if it "
        "does not fit.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_config_arguments(parser)
    add = parser.add_argument
    add("--gpus", type=int, default=1, help="how many, over all machines (1)")
    add("--gpu-memory", type=float, metavar="GIB", help="of each (the chip's)")
    add("--chip", default="h100", help="whose speed: h100, a100, 4090, ... (h100)")
    add("--share", type=float, default=SHARE, help=f"of the chip's peak that is reached ({SHARE})")
    add(
        "--reserve", type=float, default=RESERVE, metavar="GIB",
        help=f"memory that no tensor gets: the driver's, workspaces, pieces ({RESERVE:g})",
    )  # fmt: skip
    add(
        "--link", type=float, default=LINK, metavar="GB/S",
        help=f"between GPUs, for ZeRO-3: 50 is a 400 Gb/s network, NVLink is faster ({LINK:g})",
    )  # fmt: skip
    add("--samples", type=int, help="pairs, where there is no manifest yet")
    add("--prompts", type=int, help="different prompts among --samples (as many as samples)")
    add("--json", action="store_true", help="print numbers for programs")
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """Refuses numbers out of range before anything is computed.

    Raises:
        UserError: names the option.
    """
    for name, lowest in (("gpus", 1), ("samples", 1), ("prompts", 1)):
        value = getattr(args, name)
        if value is not None and value < lowest:
            raise UserError(f"--{name} {value}: must be at least {lowest}")
    for name in ("gpu_memory", "link"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be above 0")
    if not 0 < args.share <= 1:
        raise UserError(f"--share {args.share}: is a part of the peak, above 0 and at most 1")
    if not 0 <= args.reserve < math.inf:
        raise UserError(f"--reserve {args.reserve}: must not be negative")
    if args.prompts and not args.samples:
        raise UserError("--prompts goes with --samples")


@command
def main(argv: list[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: arguments, None for the process's own.

    Returns:
        0 if the run fits, 1 if not.

    Raises:
        UserError: see `estimate.make_plan` and `check_arguments`.
    """
    args = parser().parse_intermixed_args(argv)
    check_arguments(args)
    from regionroute.config.run import dump_config, load_config

    config = load_config(args.config, args.overrides)
    if args.print_config:
        print(dump_config(config), end="")
        return 0
    from regionroute.models.devices import quiet_libraries

    quiet_libraries()
    machine = _machine(args)
    plan = _planned(config, machine, args)
    if args.json:
        print(json.dumps(numbers(plan), indent=2))
    else:
        for line in report(plan, args.chip):
            print(line, flush=True)
    return 0 if plan.fits else 1


def _machine(args: argparse.Namespace) -> Machine:
    from regionroute.planning.chips import chip
    from regionroute.planning.estimate import Machine

    chosen = chip(args.chip)
    memory = args.gpu_memory or chosen.memory
    return Machine(args.gpus, memory, args.reserve, chosen.teraflops, args.share, args.link)


def _planned(config: RunConfig, machine: Machine, args: argparse.Namespace) -> Plan:
    from dataclasses import replace

    from regionroute.planning.estimate import make_plan, read_data
    from train.planned import planned_step

    data = read_data(config)
    if args.samples:
        data = replace(
            data,
            samples=args.samples,
            prompts=args.prompts or args.samples,
            masks=args.samples,
            pictures=2 * args.samples,
            note="--samples",
        )
    return make_plan(config, machine, planned_step, data)


def numbers(plan: Plan) -> dict[str, Any]:
    """The plan for programs: bytes, seconds and counts."""
    from regionroute.planning.estimate import disk_bytes

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
    from regionroute.planning.remedies import checkpointing, retraced, without_supervision

    on = plan.config.train.gradient_checkpointing
    yield "memory of each GPU in a step"
    for name, size in plan.memory.items():
        shown = f"activations, checkpointing {'on' if on else 'off'}"
        yield _row(shown if name == "activations" else name, size)
    yield _row("reserve (--reserve)", plan.reserve)
    yield _row("together", plan.bytes_in_step)
    other = retraced(plan, checkpointing(plan.config, not on))
    yield _row(f"  with checkpointing {'off' if on else 'on'}", other.bytes_in_step)
    supervision = plan.config.supervision
    if supervision.focus or supervision.cover:
        plain = retraced(plan, without_supervision(plan.config))
        extra = plan.trace.activations - plain.trace.activations
        yield _row("  of it for the supervision", extra)
    yield _row("while caching (base, encoders, one picture)", plan.bytes_in_caching)


def _time(plan: Plan, chip: str) -> Iterator[str]:
    train, machine = plan.config.train, plan.machine
    yield (
        f"time, at {machine.share:.0%} of the {machine.teraflops:g} TFLOP/s of {chip} "
        "(assumed, --share)"
    )
    yield f"  {'operations of a pass':<44}{plan.trace.flops / 1e12:>12,.1f} TFLOP"
    yield f"  {'optimizer step':<44}{plan.seconds:>12.2f} s"
    if plan.seconds_gathering:
        yield f"  {'  computing':<44}{plan.seconds_computing:>12.2f} s"
        yield f"  {'  gathering weights, at best hidden':<44}{plan.seconds_gathering:>12.2f} s"
    yield f"  {'pairs':<44}{train.global_batch / plan.seconds:>12.2f} a second"
    hours = train.steps * plan.seconds / 3600
    yield f"  {f'{train.steps:,} steps (train.steps)':<44}{hours:>12.1f} hours"


def _disk(plan: Plan) -> Iterator[str]:
    from regionroute.planning.estimate import cache_bytes, disk_bytes

    yield "cache on disk, without file headers"
    each = cache_bytes(plan.base, plan.shape, plan.config)
    yield "  " + ", ".join(f"a {name} {size / 1e6:,.2f} MB" for name, size in each.items())
    for name, size in disk_bytes(plan).items():
        yield f"  {name:<44}{size / 1e9:>12,.2f} GB"


def _verdict(plan: Plan) -> Iterator[str]:
    from regionroute.planning.remedies import remedies

    machine = plan.machine
    if plan.fits:
        spare = machine.memory * 2**30 - max(plan.bytes_in_step, plan.bytes_in_caching)
        yield f"fits {machine.memory:g} GiB, {spare / 2**30:.1f} GiB to spare"
        return
    yield f"does not fit {machine.memory:g} GiB"
    if plan.bytes_in_caching > machine.memory * 2**30:
        yield (
            "  caching: fill data.cache on a larger GPU or on the processor first; a run that "
            "finds its cache whole still loads the encoders"
        )
    if plan.bytes_in_step > machine.memory * 2**30:
        for remedy in remedies(plan):
            size = remedy.plan.bytes_in_step / 2**30
            enough = "enough" if size <= machine.memory else "not enough alone"
            yield f"  {remedy.setting:<36}{size:>8.1f} GiB, {enough}: {remedy.why}"


def _row(name: str, size: int) -> str:
    return f"  {name:<44}{size / 2**30:>12.2f} GiB"


if __name__ == "__main__":
    raise SystemExit(main())
