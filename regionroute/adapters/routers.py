"""Which expert each sample of a batch uses.

Shape legend: B batch, E experts, k experts used at a time.
"""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class RouteContext:
    """What routers know about the current batch.

    Attributes:
        expert_ids: long [B], on the model's device; -1 = no expert, the bare base.
        distinct: the different ids, ascending, read once here: a look at `expert_ids` in every
            layer would stop the GPU each time.

    Raises:
        ValueError: `expert_ids` is not a non-empty vector of integers >= -1.
    """

    expert_ids: Tensor
    distinct: tuple[int, ...] = field(init=False)
    index: Tensor = field(init=False, repr=False)  # [B,1], 0 in place of -1
    weight: Tensor = field(init=False, repr=False)  # [B,1], 0 for -1, else 1

    def __post_init__(self) -> None:
        ids = self.expert_ids
        if ids.ndim != 1 or ids.numel() == 0 or ids.dtype != torch.long:
            raise ValueError(
                f"expert_ids must be a long vector [B], got {ids.dtype} {[*ids.shape]}"
            )
        distinct = tuple(sorted(set(ids.tolist())))
        if distinct[0] < -1:
            raise ValueError(f"expert ids start at 0 (-1: no expert), got {distinct[0]}")
        object.__setattr__(self, "distinct", distinct)
        object.__setattr__(self, "index", ids.clamp(min=0)[:, None])
        object.__setattr__(self, "weight", ids.ge(0).float()[:, None])


@dataclass(frozen=True, eq=False)
class Routing:
    """A router's decision.

    Attributes:
        index: long [B,k], each in [0,E).
        weight: fp32 [B,k]; 0 switches an expert off.
        shared: the one expert that every sample uses with weight 1, -1 if every sample uses none,
            None if the samples differ.
    """

    index: Tensor
    weight: Tensor
    shared: int | None = None


class Router(Protocol):
    """Chooses experts; a module of its own in each adapted layer."""

    num_experts: int

    def __call__(self, context: RouteContext) -> Routing:
        """Routes each sample of the batch."""


class StyleIdRouter(nn.Module):
    """Hard routing (RegionRoute spec §5): the sample's own expert, weight 1, no parameters.

    Args:
        num_experts: E.
    """

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.num_experts = num_experts

    def forward(self, context: RouteContext) -> Routing:
        """Routes each sample to the expert it names.

        Raises:
            ValueError: an id that is not below `num_experts`.
        """
        if context.distinct[-1] >= self.num_experts:
            raise ValueError(
                f"expert {context.distinct[-1]} was asked for, there are {self.num_experts}"
            )
        shared = context.distinct[0] if len(context.distinct) == 1 else None
        return Routing(context.index, context.weight, shared)
