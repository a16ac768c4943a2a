"""Checkpoints: experts, DeepSpeed's state and the trainer's, complete or not there at all.

``<output>/checkpoints/step-000400/`` holds ``experts/`` (loadable by `edit` and by diffusers),
``engine/`` (optimizer and schedule), ``adapters.safetensors`` (the trained weights, for another
number of processes), ``average.safetensors`` if there is a moving average, whose the experts are
then, ``trainer.json``, and ``checksums.json`` of all these files. The folder is written under a
hidden name and renamed when all of it is on disk, so an interrupted save leaves the one before.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regionroute.adapters import adapter_parameters, expert_state_dict, read_registry
from regionroute.adapters.files.lora_file import read_lora_file
from regionroute.adapters.files.router_file import router_state_dict
from regionroute.errors import UserError
from regionroute.files import read_json, write_json
from regionroute.folders import atomic_folder, remove_folder, replace_folder
from train.engine import distributed
from train.engine.checksums import write_checksums
from train.engine.distributed import Ranks
from train.engine.ema import FILE as AVERAGE_FILE
from train.engine.weights import differing, read_adapters, write_adapters

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from train.engine.ema import MovingAverage

FOLDER = "checkpoints"
STATE_FILE = "trainer.json"
ADAPTERS_FILE = "adapters.safetensors"
ENGINE_TAG = "engine"
# Facts that a resumed run must share, and what each is called in the configuration.
EXACT = {
    "base_weights": "base.name",
    "styles": "experts.styles",
    "rank": "experts.rank",
    "alpha": "experts.alpha",
    "targets": "experts.targets",
    "shared_rank": "experts.shared_rank",
    "router": "experts.router",
    "num_experts": "experts.num_experts",
    "style_encoder": "experts.style_encoder",
    "zero_stage": "train.zero_stage",
    "optimizer": "optim.name",
}
# What held for checkpoints from before a fact was written down.
EARLIER: dict[str, Any] = {
    "shared_rank": 0,
    "router": "style",
    "num_experts": None,
    "style_encoder": None,
    "references": None,
    "optimizer": "adamw",
}
# Facts whose change alters which samples come next, but breaks nothing.
ORDER = {
    "seed": "seed",
    "global_batch": "train.global_batch",
    "samples": "data.manifest",
    "references": "experts.style_pictures",
}


@dataclass(frozen=True)
class TrainerState:
    """The progress of a run.

    Attributes:
        step: optimizer steps done.
        seconds: spent on them, over all starts of the run.
        facts: what the run depends on; see `check_facts`.
        supervision_scale: of the weights of Focus and Cover, see `train.monitor.gradient_norms`.
        best_step: of the lowest validation loss, whose checkpoint is kept; None before the first.
        best_loss: that loss.
        settings: the run's, as JSON values; None in checkpoints of earlier versions.
        changes: settings that held before, see `train.engine.settings_changes.History`.
    """

    step: int
    seconds: float
    facts: dict[str, Any]
    supervision_scale: float = 1.0
    best_step: int | None = None
    best_loss: float | None = None
    settings: dict[str, Any] | None = None
    changes: list[dict[str, Any]] = field(default_factory=list)


def find(output: Path) -> list[tuple[int, Path]]:
    """(step, folder) of the complete checkpoints of a run, oldest first."""
    found = []
    for folder in (output / FOLDER).glob("step-*"):
        number = re.fullmatch(r"step-(\d+)", folder.name)
        if number and (folder / STATE_FILE).is_file():
            found.append((int(number[1]), folder))
    return sorted(found)


def save(
    engine: DeepSpeedEngine,
    output: Path,
    state: TrainerState,
    write_experts: Callable[[Path], object],
    ranks: Ranks,
    keep: int,
    average: MovingAverage | None = None,
) -> Path:
    """Writes a checkpoint and removes all but the newest `keep` and the best.

    All processes must call it.

    Args:
        engine: its optimizer and schedule are saved, the frozen base is not.
        output: the run's folder.
        state: the trainer's.
        write_experts: writes the experts into the folder it is given; called by process 0.
        ranks: this process's place.
        keep: how many complete checkpoints stay.
        average: of the trained weights, if there is one; the experts are then its.

    Returns:
        The checkpoint's folder.
    """
    final = output / FOLDER / f"step-{state.step:06d}"
    partial = final.with_name(f".{final.name}.partial")
    if ranks.main:
        for leftover in final.parent.glob(".*"):
            if leftover.is_dir():
                shutil.rmtree(leftover)
    distributed.barrier()
    engine.save_checkpoint(
        str(partial), tag=ENGINE_TAG, save_latest=False, exclude_frozen_parameters=True
    )
    write_adapters(partial / ADAPTERS_FILE, engine.module, main=ranks.main)
    if average:
        average.save(partial, main=ranks.main)
    export(engine, partial / "experts", write_experts, ranks, average)
    if ranks.main:
        write_json(partial / STATE_FILE, asdict(state))
        write_checksums(partial)
        replace_folder(partial, final)
        for step, folder in find(output)[:-keep]:
            if step != state.best_step:
                remove_folder(folder)
    distributed.barrier()
    return final


def export(
    engine: DeepSpeedEngine,
    folder: Path,
    write_experts: Callable[[Path], object],
    ranks: Ranks,
    average: MovingAverage | None = None,
) -> None:
    """Writes the experts as one folder that replaces an older one; all processes must call it."""
    applied = average.applied() if average else nullcontext()
    with applied, distributed.gathered(adapter_parameters(engine.module)):
        if ranks.main:
            with atomic_folder(folder) as partial:
                write_experts(partial)
    distributed.barrier()


def read_state(folder: Path) -> TrainerState:
    """What ``trainer.json`` of a checkpoint says.

    Raises:
        UserError: it is missing, no JSON, or lacks something.
    """
    values = read_json(folder / STATE_FILE)
    try:
        state = TrainerState(
            int(values["step"]),
            float(values["seconds"]),
            dict(values["facts"]),
            float(values.get("supervision_scale", 1.0)),
            values.get("best_step"),
            values.get("best_loss"),
            values.get("settings"),
            list(values.get("changes", [])),
        )
        lacking = {*EXACT, *ORDER, "world"} - set(EARLIER | state.facts)
    except (KeyError, TypeError, ValueError):
        lacking = {"step, seconds or facts"}
    if lacking:
        raise UserError(
            f"{folder}: this checkpoint is damaged ({STATE_FILE} lacks {min(lacking)}): delete the "
            "folder, and the same command continues from the one before"
        )
    return state


def check_facts(folder: Path, facts: dict[str, Any], world: int) -> list[str]:
    """Compares a run with the checkpoint it is about to continue.

    Args:
        folder: of the checkpoint.
        facts: of this run.
        world: number of processes.

    Returns:
        Remarks on changes that are allowed but alter what comes next.

    Raises:
        UserError: the checkpoint cannot be continued by this run.
    """
    saved = EARLIER | read_state(folder).facts
    for fact, key in EXACT.items():
        if saved[fact] != facts[fact]:
            values = "other weights than now" if fact == "base_weights" else (
                f"{saved[fact]}, now it is {facts[fact]}"
            )  # fmt: skip
            raise UserError(
                f"{folder}: this checkpoint was trained with {key} = {values}; set it back, choose "
                "another output, or start over with train.resume=false"
            )
    if shared_otherwise(folder, world) and not (folder / ADAPTERS_FILE).is_file():
        raise UserError(
            f"{folder}: this checkpoint was written by {saved['world']} processes at ZeRO stage "
            f"{saved['zero_stage']}, which shares the optimizer among them: continue with "
            f"{saved['world']} processes instead of {world}, or start over with train.resume=false"
        )
    return [
        f"{key} has changed since the checkpoint: the samples come in another order from here on"
        for fact, key in ORDER.items()
        if saved[fact] != facts[fact]
    ]


def shared_otherwise(folder: Path, world: int) -> bool:
    """Whether the optimizer's state lies in the parts of another number of processes."""
    saved = read_state(folder).facts
    return bool(saved["zero_stage"] > 0 and saved["world"] != world)


def load(engine: DeepSpeedEngine, folder: Path) -> TrainerState:
    """Restores experts, optimizer and schedule; all processes must call it.

    Raises:
        UserError: the checkpoint is damaged, or an adapter weight did not arrive.
    """
    # DeepSpeed and torch.load raise nearly any class on damaged files.
    try:
        with distributed.quiet():
            path, _ = engine.load_checkpoint(
                str(folder), tag=ENGINE_TAG, load_module_strict=False
            )  # not strict: the frozen base is not in it
    except Exception as error:
        path = None
        reason = f" ({type(error).__name__}: {next(iter(str(error).splitlines()), '')})"
    else:
        reason = ""
    if path is None:
        raise UserError(
            f"{folder}: this checkpoint is damaged{reason}: delete the folder, and the same "
            "command continues from the one before"
        )
    _verify(engine, folder)
    return read_state(folder)


def _verify(engine: DeepSpeedEngine, folder: Path) -> None:
    """Compares the restored adapters with the files that were written beside them.

    DeepSpeed's lenient loading, needed because the base is omitted, would also accept a
    checkpoint that lacks adapters.
    """
    if (folder / ADAPTERS_FILE).is_file():
        state = read_adapters(folder / ADAPTERS_FILE, engine.module)
        if (name := differing(engine.module, state)) is not None:
            raise _not_restored(folder, name, "of all")
    if (folder / AVERAGE_FILE).is_file():
        return  # of which the experts are
    registry = read_registry(folder / "experts")
    with distributed.gathered(adapter_parameters(engine.module)):
        for index, entry in enumerate(registry.experts):
            state = expert_state_dict(engine.module, index)
            _compare(state, folder, entry.file, f"of expert {entry.style!r}")
        if registry.router:
            _compare(router_state_dict(engine.module), folder, registry.router.file, "of all")


def _compare(state: Mapping[str, Tensor], folder: Path, file: str, whose: str) -> None:
    expected, _ = read_lora_file(folder / "experts" / file, upcast=False)
    for key, value in state.items():
        kept = expected.get(key)  # in the precision of `experts.dtype`
        if kept is None or not torch.equal(value.to(kept.dtype).float(), kept.float()):
            raise _not_restored(folder, key, whose)


def _not_restored(folder: Path, key: str, whose: str) -> UserError:
    return UserError(
        f"{folder}: weight {key!r} {whose} was not restored: delete the folder, and the same "
        "command continues from the one before"
    )


def set_aside(output: Path) -> Path | None:
    """Moves the checkpoints of an earlier run out of the way; None if there are none."""
    folder = output / FOLDER
    if not find(output):
        return None
    aside = folder.with_name(f"{FOLDER}-before-{time.strftime('%Y%m%d-%H%M%S')}")
    folder.rename(aside)
    return aside
