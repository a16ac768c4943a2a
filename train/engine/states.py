"""Checkpoints of trainings that are one process: the state of each part, and the steps done."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from regionroute.errors import UserError, first_line
from regionroute.files import atomic_write


class Stateful(Protocol):
    """A network or an optimizer."""

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes."""
        ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any:
        """Takes over a state."""
        ...


def save_states(path: Path, step: int, **parts: Stateful) -> None:
    """Write the parts' states and the number of steps done; the former file stays until then.

    Raises:
        UserError: a network's weights are not finite: the former file is what to resume from.
    """
    for part in parts.values():
        if isinstance(part, nn.Module) and not all(w.isfinite().all() for w in part.parameters()):
            raise UserError(
                f"the weights of step {step} are not finite any more: lower the learning rate and "
                "resume"
            )
    state = {name: part.state_dict() for name, part in parts.items()}
    with atomic_write(path) as temporary:
        torch.save({**state, "step": step}, temporary)


def load_states(path: Path, **parts: Stateful) -> int:
    """Continue from a checkpoint of `save_states`, if there is one.

    Args:
        path: the file.
        parts: what takes over its states, by the names it was saved by.

    Returns:
        The steps done; 0 without the file.

    Raises:
        UserError: it is damaged or of other sizes.
    """
    if not path.is_file():
        return 0
    # torch.load and load_state_dict raise nearly any class on what is not theirs.
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return int(state["step"])
    except Exception as error:
        raise UserError(
            f"{path}: this checkpoint is damaged or of other sizes or words than this run's "
            f"({first_line(error)}): set them back, choose another output, or remove the file"
        ) from error
