"""``regionroute train``: train style experts on a base, alone or under deepspeed or torchrun."""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

# Idle CPU threads sleep instead of spinning: next to another busy program spinning made a step
# twenty times slower. Read once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from regionroute.cli.options import command_parser
from regionroute.config.run import RunConfig, add_config_arguments, dump_config, load_config
from regionroute.errors import Parser, UserError, command
from regionroute.files import check_output_folder

if TYPE_CHECKING:
    from train.engine.distributed import Ranks
    from train.trainer import Trainer


EPILOG = """\
examples:
  regionroute train --config nano train.steps=400
  regionroute train --config nano_photos --print-config
  python train/run.py --config configs/nano.yaml train.steps=400            # the same, in a clone
  deepspeed --num_gpus 2 train/run.py --config configs/nano.yaml
  torchrun --nproc-per-node 2 train/run.py --config configs/nano.yaml
  torchrun --nproc-per-node 2 -m train.run --config nano             # of an installed package
  regionroute train --config kontext --cache-only                    # encode first, train later

A stopped run resumes from its newest checkpoint when the command is given again."""


def parser() -> Parser:
    """The command line; the launchers add their own --local_rank."""
    parser = command_parser("train", "Train style experts on a base.", EPILOG)
    add_config_arguments(parser)
    parser.add_argument(
        "--cache-only", action="store_true",
        help="encode images and prompts into data.cache and end: needs the encoders' memory alone",
    )  # fmt: skip
    parser.add_argument(
        "--local_rank", "--local-rank", type=int, default=None, help=argparse.SUPPRESS
    )
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    """Runs the command.

    Returns:
        0; 2 after a mistake in what the user gave; 130 or 143 when stopped, a checkpoint written.
    """
    arguments = parser().parse_intermixed_args(argv)
    config = load_config(arguments.config, arguments.overrides)
    if arguments.print_config:
        print(dump_config(config), end="")
        return 0
    from train.engine import distributed  # imports torch and DeepSpeed

    ranks = distributed.start(arguments.local_rank)
    try:
        return fill(config, ranks) if arguments.cache_only else train(config, ranks)
    except distributed.SharedMistake:
        if ranks.main:
            raise
        return 2
    finally:
        distributed.stop()


def fill(config: RunConfig, ranks: Ranks) -> int:
    """Fills the cache of a run and trains nothing; returns the exit code.

    Raises:
        UserError: the same on all processes.
    """
    from train.engine import distributed
    from train.prepare import fill_cache

    with ExitStack() as held:
        distributed.agree(lambda: _make_folders(config, ranks, held))
        distributed.log_library_to(Path(config.output) / "deepspeed.log", ranks)
        fill_cache(config, ranks)
    return 0


def train(config: RunConfig, ranks: Ranks) -> int:
    """Trains to the end, or until it is stopped; returns the exit code.

    Raises:
        UserError: the same on all processes.
    """
    from train.engine import distributed
    from train.engine.checkpoint import FOLDER
    from train.prepare import build_trainer  # heavy, and DeepSpeed reads the environment first

    output = Path(config.output)
    with ExitStack() as held:
        distributed.agree(lambda: _make_folders(config, ranks, held))
        distributed.log_library_to(output / "deepspeed.log", ranks)
        trainer = build_trainer(config, ranks)
        try:
            _write_facts(trainer, finished=False)
            code = trainer.run()
            if code == 0:
                _export(trainer, output / FOLDER)
            distributed.agree(trainer.reporter.check)
            _write_facts(trainer, finished=code == 0)
        finally:
            trainer.reporter.close()
    return code


def _export(trainer: Trainer, checkpoints: Path) -> None:
    folder = trainer.export()
    trainer.reporter.note(f"experts: {folder}")
    if trainer.state.best_step is not None:
        best = checkpoints / f"step-{trainer.state.best_step:06d}"
        loss = f"{trainer.state.best_loss:.4f}"
        trainer.reporter.note(f"lowest validation loss, {loss}: {best / 'experts'}")


def _make_folders(config: RunConfig, ranks: Ranks, held: ExitStack) -> None:
    """Checks the folders to write to; process 0 locks the output until `held` is closed."""
    for key, folder in (("output", config.output), ("data.cache", config.data.cache)):
        if folder is None or (key == "data.cache" and "://" in folder):
            continue
        try:
            check_output_folder(folder)
        except UserError as error:
            raise UserError(f"{key}={error}") from error
    from train.engine.output_lock import locked_output

    if ranks.main:
        held.enter_context(locked_output(Path(config.output)))


def _write_facts(trainer: Trainer, *, finished: bool) -> None:
    from train.monitor.logs import write_facts
    from train.prepare import trainable_parameters

    state, train = trainer.state, trainer.config.train
    parameters = trainable_parameters(trainer)
    if not trainer.ranks.main:
        return
    speed = state.step / state.seconds if state.seconds else None
    facts = {
        "finished": finished,
        "steps": state.step,
        "seconds": state.seconds,
        "steps_per_second": speed,
        "samples_per_second": speed and speed * train.global_batch,
        "trainable_parameters": parameters,
        "samples_in_split": len(trainer.data.examples),
        "base": trainer.config.base.name,
        "best_step": state.best_step,
        "best_validation_loss": state.best_loss,
        **state.facts,
    }
    write_facts(trainer.output, facts, trainer.ranks.device)


if __name__ == "__main__":
    raise SystemExit(main())
