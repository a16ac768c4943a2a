"""The optimizers of a run, each from its own package."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from regionroute.errors import UserError

if TYPE_CHECKING:
    from regionroute.config.run import OptimConfig


def build_optimizer(
    parameters: Iterable[nn.Parameter], optim: OptimConfig
) -> torch.optim.Optimizer:
    """The optimizer of the configuration over the trained parameters.

    Args:
        parameters: float32.
        optim: name, lr, betas, eps and weight_decay are read.

    Raises:
        UserError: its package is not installed.
    """
    settings: dict[str, Any] = {
        "lr": optim.lr,
        "betas": tuple(optim.betas),
        "eps": optim.eps,
        "weight_decay": optim.weight_decay,
    }
    return optimizer_class(optim.name)(list(parameters), **settings)


def optimizer_class(name: str) -> Any:
    """The class behind ``optim.name``; its arguments are those of `torch.optim.AdamW`.

    Raises:
        UserError: its package is not installed.
    """
    if name == "adamw8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError as error:
            raise UserError(
                "optim.name=adamw8bit needs bitsandbytes, which is not installed: "
                "pip install 'regionroute[optimizers]', or set optim.name=adamw"
            ) from error
        return AdamW8bit
    if name == "prodigy":
        from pytorch_optimizer import Prodigy

        return Prodigy
    return torch.optim.AdamW


def check_optimizer(optim: OptimConfig, zero_stage: int, world: int) -> None:
    """Refuses what would train otherwise than it says, or not at all.

    Prodigy finds one step size from sums over all trained values. Under ZeRO every process steps
    a part of them, and would find a size of its own.

    Args:
        optim: the run's.
        zero_stage: DeepSpeed's.
        world: number of processes.

    Raises:
        UserError: Prodigy on parts, or a package that is not installed.
    """
    if optim.name == "prodigy" and zero_stage > 0 and world > 1:
        raise UserError(
            f"optim.name=prodigy at ZeRO stage {zero_stage} would find another step size on each "
            f"of the {world} processes: set train.zero_stage=0 or optim.name=adamw"
        )
    optimizer_class(optim.name)
