"""What the adapted layers of one transformer share, above all the route in force.

Shape legend: B batch, k experts used at a time, r rank, rs rank of the shared expert,
R = k·r + rs. Sizes written 1|B may be 1: the same for all samples.
"""

from dataclasses import dataclass, field

from torch import Tensor

from regionroute.adapters.routers import RouteContext, Routing


@dataclass(frozen=True, eq=False)
class Stack:
    """The experts that a batch uses in one layer, side by side as one adapter of rank R.

    Attributes:
        a: [1|B,R,in].
        b: [1|B,R,out], times the weights.
    """

    a: Tensor
    b: Tensor


@dataclass(eq=False)
class ActiveRoute:
    """A route in force: its context, and what the layers found out under it.

    Attributes:
        context: of the batch.
        stacks: by layer (its id), with the state of the parameters they were made from; kept only
            where no gradient is asked for, so that sampling gathers and casts experts once.
        routings: decisions of learned routers by layer name, for losses and logs.
    """

    context: RouteContext
    stacks: dict[int, tuple[object, Stack | None]] = field(default_factory=dict)
    routings: dict[str, Routing] = field(default_factory=dict)


@dataclass(eq=False)
class AdapterGroup:
    """What the adapted layers of one transformer share: how they were made, and the route now.

    A plain object and no context variable or thread-local: on CUDA gradient checkpointing runs
    the layers again in autograd's own thread.

    Attributes:
        targets: the preset's name or the module suffixes that were adapted.
        active: the route of the current step, None outside `routed`.
    """

    targets: str | list[str] = ""
    active: ActiveRoute | None = None
