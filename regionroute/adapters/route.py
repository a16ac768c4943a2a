"""Puts a route in force for a model's adapted layers, and reads what learned routers made of it."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from regionroute.adapters.group import ActiveRoute, AdapterGroup
from regionroute.adapters.lora_moe import adapter_layers
from regionroute.adapters.routers import RouteContext, Routing


@contextmanager
def routed(model: nn.Module, context: RouteContext | ActiveRoute) -> Iterator[None]:
    """Routes every adapted layer of `model` by `context`; on exit the previous route is back.

    The backward pass belongs inside: checkpoint recomputation runs the layers again.

    Args:
        model: the adapted transformer, or anything that contains it.
        context: for the batches run inside; an `ActiveRoute` keeps what the layers found out for
            the next time that it is in force.

    Raises:
        ValueError: the model has no adapted layers.
    """
    groups = _groups(model)
    previous = [group.active for group in groups]
    for group in groups:
        group.active = context if isinstance(context, ActiveRoute) else ActiveRoute(context)
    try:
        yield
    finally:
        for group, before in zip(groups, previous, strict=True):
            group.active = before


def routings(model: nn.Module) -> dict[str, Routing]:
    """What learned routers decided under the route in force, by layer name, with the graph.

    Args:
        model: the adapted transformer, or anything that contains it, after its forward pass and
            still inside `routed`.

    Returns:
        Empty outside `routed`, before the forward pass, and without learned routers.

    Raises:
        ValueError: the model has no adapted layers.
    """
    return {
        name: routing
        for group in _groups(model)
        if group.active is not None
        for name, routing in group.active.routings.items()
    }


def _groups(model: nn.Module) -> list[AdapterGroup]:
    layers = adapter_layers(model).values()
    return list({id(layer.group): layer.group for layer in layers}.values())
