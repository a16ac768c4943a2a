"""Gradient norm per loss, and the cap on that of the supervision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from regionroute.compat import whole_size
from train.data.dataset import seeded
from train.engine.distributed import Ranks
from train.engine.weights import named_adapters
from train.step import Batch, training_step

if TYPE_CHECKING:
    from torch import nn

    from regionroute.config.run import RunConfig

NAMES = ("flow", "focus", "cover")


def measure_gradient_norms(
    module: nn.Module, batches: Sequence[Batch], config: RunConfig, step: int, ranks: Ranks
) -> dict[str, float]:
    """Gradient norms of the weighted losses over the global batch; no weight is changed.

    Each loss gets a forward and a backward pass of its own, outside the engine. All processes must
    call it.

    Args:
        module: the adapted transformer, bare.
        batches: this process's micro-batches of the step, on the CPU.
        config: its flow and supervision parts are read.
        step: counted from 0; dropout draws the same masks as in the step itself.
        ranks: this process's place.

    Returns:
        "grad_norm_flow", "grad_norm_focus", "grad_norm_cover": gradient norm of each loss;
        "grad_norm_supervision": that of Focus and Cover together; "grad_fraction_flow",
        "grad_fraction_focus", "grad_fraction_cover": each of the first three over their sum.
    """
    weights = {"flow": 1.0, "focus": config.supervision.focus, "cover": config.supervision.cover}
    gradients = {
        name: weight * _gradient(module, batches, config, step, ranks, name)
        for name, weight in weights.items()
        if weight > 0
    }
    norms = {name: _norm(gradients.get(name)) for name in NAMES}
    supervision = [gradients[name] for name in ("focus", "cover") if name in gradients]
    together = torch.stack(supervision).sum(0) if supervision else None
    total = sum(norms.values())
    return (
        {f"grad_norm_{name}": norm for name, norm in norms.items()}
        | {"grad_norm_supervision": _norm(together)}
        | {f"grad_fraction_{name}": norm / total if total else 0.0 for name, norm in norms.items()}
    )


def supervision_scale(measured: dict[str, float], most: float | None) -> float:
    """The factor on the weights of Focus and Cover that enforces the cap, in [0,1].

    Args:
        measured: by `measure_gradient_norms`.
        most: largest gradient norm of the supervision over that of the flow loss; None: no cap.
    """
    supervision, flow = measured["grad_norm_supervision"], measured["grad_norm_flow"]
    if most is None or not supervision:
        return 1.0
    return min(1.0, most * flow / supervision)


def _norm(gradient: Tensor | None) -> float:
    return 0.0 if gradient is None else float(gradient.norm())


def _gradient(
    module: nn.Module,
    batches: Sequence[Batch],
    config: RunConfig,
    step: int,
    ranks: Ranks,
    name: str,
) -> Tensor:
    """Gradient of the global batch's mean of one unweighted loss, flat, the same everywhere."""
    parameters = list(named_adapters(module).values())
    total: Tensor | None = None
    for micro, batch in enumerate(batches):
        seed_dropout(config.seed, step, micro, ranks.rank)
        with training_step(module, batch.to(ranks.device), config) as losses:
            found = torch.autograd.grad(getattr(losses, name).mean(), parameters, allow_unused=True)
        flat = torch.cat([_flat(g, p) for g, p in zip(found, parameters, strict=True)])
        total = flat if total is None else total + flat
    assert total is not None
    total /= len(batches) * ranks.world
    dist.all_reduce(total)
    return total


def _flat(gradient: Tensor | None, parameter: nn.Parameter) -> Tensor:
    if gradient is not None:
        return gradient.flatten()
    return torch.zeros(whole_size(parameter).numel(), device=parameter.device)


def seed_dropout(seed: int, step: int, micro: int, rank: int) -> None:
    """Seeds dropout by the position of a micro-batch in the run alone."""
    torch.manual_seed(seeded("dropout", seed, step, micro, rank).initial_seed())
