"""What the commands of trainings in one process share: settings, folder, seed, resume."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel

from regionroute.config.io import FILE_NAME, command_settings, load_config, save_config
from regionroute.errors import UserError
from regionroute.files import check_output_folder
from train.engine.output_lock import locked_output
from train.engine.states import Stateful, load_states
from train.monitor.logs import rewind

CHECKPOINT, LOG_FILE = "checkpoint.pt", "log.jsonl"


Settings = TypeVar("Settings", bound=BaseModel)


def run_training(
    prog: str,
    description: str | None,
    model: type[Settings],
    argv: Sequence[str] | None,
    train: Callable[[Settings, Path], None],
) -> int:
    """Reads settings and trains in their output folder, which is locked meanwhile.

    Args:
        prog: the command's name.
        description: what ``--help`` says.
        model: class of the settings, with `seed`, `output` and perhaps `threads`.
        argv: arguments; None for those of the process.
        train: trains by its settings in the folder.

    Returns:
        The exit code 0.

    Raises:
        UserError: wrong settings, an output that cannot be used, or anything `train` refuses.
    """
    settings = command_settings(prog, description, model, argv)
    if settings is None:
        return 0
    given: Any = settings
    check_output_folder(given.output)
    threads = getattr(given, "threads", None)
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(given.seed)
    output = Path(given.output)
    with locked_output(output):
        train(settings, output)
    return 0


def resume(settings: BaseModel, output: Path, fixed: Sequence[str] = (), **parts: Stateful) -> int:
    """Restores the parts from the folder's checkpoint and readies its log; stores the settings.

    Args:
        settings: of the run; with a `resume` that is false, the checkpoint is not read.
        output: folder of the run.
        fixed: names of settings that a run which is resumed must have had alike.
        parts: networks and optimizers by the names that `save_states` got.

    Returns:
        Steps done before: 0 without a checkpoint.

    Raises:
        UserError: the checkpoint is damaged, of other sizes, or of a run with other fixed settings.
    """
    start = 0
    if getattr(settings, "resume", True):
        if fixed and (output / CHECKPOINT).is_file():
            _check_same(settings, output, fixed)
        start = load_states(output / CHECKPOINT, **parts)
    save_config(settings, output)  # only now: a refused run leaves the earlier one's
    rewind(output / LOG_FILE, start)
    return start


def warm_cosine(step: int, warmup: int, steps: int) -> float:
    """Factor on the learning rate of a step, from 0: linear warm-up, then a cosine down to 1 %."""
    warm = min(1.0, (step + 1) / max(1, warmup))
    return warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _check_same(settings: BaseModel, output: Path, fixed: Sequence[str]) -> None:
    path = output / FILE_NAME
    if not path.is_file():
        return
    before = load_config(path, [], type(settings))
    for name in fixed:
        was, now = getattr(before, name), getattr(settings, name)
        if was != now:
            raise UserError(
                f"{output}: the run in this folder had {name}={was}, this one has {now}: set it "
                "back or choose another output"
            )
