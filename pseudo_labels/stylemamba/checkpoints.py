"""Checkpoints of a training: networks and an optimizer in one safetensors file."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from regionroute.errors import UserError
from regionroute.files import atomic_write, read_jsonl

_OPTIMIZER = "optimizer"


def save_checkpoint(
    path: Path,
    networks: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    step: int,
    run: str,
) -> None:
    """Write a checkpoint.

    Args:
        path: file.
        networks: by name.
        optimizer: its state is kept too.
        step: number of finished steps.
        run: hash of all settings that must not change when the run resumes.
    """
    state = {
        f"{name}.{key}": value
        for name, network in networks.items()
        for key, value in network.state_dict().items()
    }
    slots = optimizer.state_dict()["state"]
    for number, values in slots.items():
        state |= {f"{_OPTIMIZER}.{number}.{name}": value for name, value in values.items()}
    facts = {"step": str(step), "slots": str(len(slots)), "run": run}
    with atomic_write(path) as temporary:
        save_file({k: v.detach().contiguous().cpu() for k, v in state.items()}, temporary, facts)


def load_checkpoint(
    path: Path, networks: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, run: str
) -> int:
    """Load a checkpoint, if there is one.

    Returns:
        The number of finished steps, 0 without a file.

    Raises:
        UserError: it is damaged, or of a run with other settings.
    """
    if not path.exists():
        return 0
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata()
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if facts["run"] != run:
            raise UserError(
                f"{path}: this checkpoint has other styles, photos, networks or settings: restore "
                "them, choose another --out, or remove the file"
            )
        for name, network in networks.items():
            network.load_state_dict(_part(state, f"{name}."))
        kept = optimizer.state_dict()
        slots = _part(state, f"{_OPTIMIZER}.")
        kept["state"] = {
            number: _part(slots, f"{number}.") for number in range(json.loads(facts["slots"]))
        }
        optimizer.load_state_dict(kept)
        return int(facts["step"])
    except (SafetensorError, KeyError, RuntimeError, TypeError, OSError) as error:
        raise UserError(f"{path}: this checkpoint is damaged, remove it to start again") from error


def rewound_rows(path: Path, start: int) -> list[dict[str, float]]:
    """Log rows up to a step; later ones are repeated."""
    if not path.exists():
        return []
    return [row for row in read_jsonl(path) if row.get("step", 0) <= start]


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
