"""From which checkpoint a run starts, and what of it is restored."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.engine import checkpoint, distributed
from train.engine.checkpoint import ADAPTERS_FILE, TrainerState
from train.engine.checksums import verify_checksums
from train.engine.distributed import Ranks
from train.engine.engine import apply_optimizer_settings
from train.engine.settings_changes import History, continued
from train.engine.weights import load_adapters, read_adapters

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine
    from torch import nn

    from regionroute.config.run import RunConfig
    from train.engine.ema import MovingAverage


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
        folder: the checkpoint to continue, None for the first step.
        adapters_only: its optimizer's state lies in the parts of another number of processes and
            stays behind.
        remarks: what there is to say about it.
        history: the settings it is trained with.
    """

    folder: Path | None
    adapters_only: bool
    remarks: list[str]
    history: History


def find_start(config: RunConfig, facts: dict[str, Any], ranks: Ranks) -> Start:
    """The newest checkpoint of the run, if it is to be resumed; all processes must call it.

    Raises:
        UserError: the checkpoint is damaged or does not fit the run, the same on all processes.
    """
    output, history = Path(config.output), History(config.model_dump(mode="json"))
    found = checkpoint.find(output)
    distributed.barrier()  # nobody moves a checkpoint before all have looked
    if found and config.train.resume:
        folder = found[-1][1]
        remarks = distributed.agree(lambda: checkpoint.check_facts(folder, facts, ranks.world))
        distributed.agree(lambda: verify_checksums(folder) if ranks.main else None)
        history, changed = distributed.agree(
            lambda: continued(config, facts, checkpoint.read_state(folder), output)
        )
        remarks += changed
        if not checkpoint.shared_otherwise(folder, ranks.world):
            return Start(folder, False, [f"resuming from {folder}", *remarks], history)
        before = checkpoint.read_state(folder).facts["world"]
        return Start(
            folder, True,
            [
                f"resuming from {folder}, which {before} processes wrote, with {ranks.world}: "
                "the experts (and their moving average), the step, the learning rate schedule and "
                "the order of the samples are restored; the optimizer's moments are not, they "
                "start from zero",
                *remarks,
            ],
            history,
        )  # fmt: skip
    if not found:
        return Start(None, False, [], history)
    aside = checkpoint.set_aside(output) if ranks.main else None
    distributed.barrier()
    remark = f"starting over: the earlier checkpoints are now in {aside}"
    return Start(None, False, [remark], history)


def load_adapters_alone(transformer: nn.Module, start: Start) -> None:
    """Before the engine is built: the experts of a checkpoint of another number of processes.

    Raises:
        UserError: their file is damaged, the same on all processes.
    """
    if start.adapters_only:
        assert start.folder is not None
        path = start.folder / ADAPTERS_FILE
        load_adapters(transformer, distributed.agree(lambda: read_adapters(path, transformer)))


def restore(
    engine: DeepSpeedEngine,
    start: Start,
    config: RunConfig,
    facts: dict[str, Any],
    average: MovingAverage | None,
) -> tuple[TrainerState, list[str]]:
    """Puts the engine and the average where the checkpoint left them; all processes must call it.

    Returns:
        The state to continue from, under the facts and settings of this run, and remarks.

    Raises:
        UserError: the checkpoint is damaged.
    """
    folder, own = start.folder, start.history
    if folder is None:
        return TrainerState(0, 0.0, facts, settings=own.settings), start.remarks
    if start.adapters_only:
        state = checkpoint.read_state(folder)
        engine.global_steps = state.step
        engine.global_samples = state.step * config.train.global_batch
        engine.lr_scheduler.last_epoch = state.step
    else:
        state = checkpoint.load(engine, folder)
    apply_optimizer_settings(engine, config)
    remarks = list(start.remarks)
    if average and not distributed.agree(lambda: average.load(folder)):
        remarks.append(f"{folder} has no moving average: it begins with the experts as they are")
    state = replace(state, facts=facts, settings=own.settings, changes=own.changes)
    return state, remarks
