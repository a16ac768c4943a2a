"""``regionroute plan``: predict what a training run takes, before anything is downloaded."""

from __future__ import annotations

import argparse
import json
import math
from typing import TYPE_CHECKING

from regionroute.cli.options import check_least, command_parser
from regionroute.errors import Parser, UserError, command

if TYPE_CHECKING:
    from regionroute.config.run import RunConfig
    from regionroute.planning.estimate import Machine, Plan

EPILOG = """\
examples:
  regionroute plan --config kontext --gpus 8 --gpu-memory 80
  regionroute plan --config kontext --chip 4090 train.zero_stage=3
  regionroute plan --config kontext --gpus 64 --samples 10000000 train.global_batch=64
  regionroute plan --config nano --chip a100 --json

The training step runs once on tensors that have shapes and types but no contents: memory and
operations are counted on the step itself. Assumed are the fraction of the chip's peak speed
(--share), the memory that no tensor gets (--reserve) and the speed between GPUs (--link).
FLUX.1-Kontext needs neither its files nor the network.

Exit code: 0 the run fits, 1 it does not, 2 wrong arguments."""

SHARE, RESERVE, LINK = 0.4, 2.0, 50.0


def parser() -> Parser:
    """The arguments; building it imports nothing heavy."""
    from regionroute.config.io import add_config_arguments

    parser = command_parser(
        "plan",
        "Predict memory, time and disk of a training run, and list what to change if "
        "it does not fit.",
        EPILOG,
    )
    add_config_arguments(parser)
    add = parser.add_argument
    add("--gpus", type=int, default=1, metavar="N", help="number of GPUs, over all machines (1)")
    add("--gpu-memory", type=float, metavar="GIB", help="memory of each GPU (the chip's)")
    add("--chip", default="h100", metavar="NAME", help="GPU: h100, a100, 4090, … (h100)")
    add(
        "--share", type=float, default=SHARE, metavar="P",
        help=f"fraction of the chip's peak speed that is reached ({SHARE})",
    )  # fmt: skip
    add(
        "--reserve", type=float, default=RESERVE, metavar="GIB",
        help=f"memory that no tensor gets: driver, workspaces, fragments ({RESERVE:g})",
    )  # fmt: skip
    add(
        "--link", type=float, default=LINK, metavar="GB/S",
        help=f"speed between GPUs, for ZeRO-3: 50 is a 400 Gb/s network ({LINK:g})",
    )  # fmt: skip
    add("--samples", type=int, metavar="N", help="pairs, if there is no manifest yet")
    add("--prompts", type=int, metavar="N", help="different prompts among --samples (all)")
    add("--json", action="store_true", help="print JSON")
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """Refuses numbers out of range before anything is computed.

    Raises:
        UserError: names the option.
    """
    check_least(args, {"gpus": 1, "samples": 1, "prompts": 1})
    for name in ("gpu_memory", "link"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be above 0")
    if not 0 < args.share <= 1:
        raise UserError(f"--share {args.share}: must be a fraction of the peak, in (0, 1]")
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
    from regionroute.planning.report import numbers, report

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
            images=2 * args.samples,
            note="--samples",
        )
    return make_plan(config, machine, planned_step, data)
