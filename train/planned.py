"""The training step for `regionroute.planning`, which may not import `train` itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from train.perceptual import PerceptualLoss
from train.step import Batch, training_step

if TYPE_CHECKING:
    from torch import Tensor

    from regionroute.adapters import RouteContext
    from regionroute.config.run import RunConfig
    from regionroute.planning.trace import LossNetworks, StepInputs


@dataclass(frozen=True, eq=False)
class _PlannedBatch(Batch):
    """A batch that brings its route: one read from fake tensors would need their values."""

    prepared: RouteContext | None = None

    @property
    def route(self) -> RouteContext:
        """The prepared route."""
        assert self.prepared is not None
        return self.prepared


@contextmanager
def planned_step(
    transformer: Any, inputs: StepInputs, config: RunConfig, networks: LossNetworks | None
) -> Iterator[Tensor]:
    """Runs `training_step` on inputs that have sizes and no contents.

    Args:
        transformer: adapted.
        inputs: of one backward pass.
        config: the run's.
        networks: of the perceptual loss; None if it is off.

    Yields:
        The mean total loss; the backward pass belongs inside the ``with`` block.
    """
    assert inputs.route.expert_ids is not None
    batch = _PlannedBatch(
        ids=tuple(map(str, range(len(inputs.target)))),
        target=inputs.target,
        context=inputs.context,
        noise=inputs.noise,
        sigma=inputs.sigma,
        prompt_embeds=inputs.prompt_embeds,
        pooled=inputs.pooled,
        expert_ids=inputs.route.expert_ids,
        plan=inputs.plan,
        inside=inputs.inside,
        style_emb=inputs.route.style_emb,
        prepared=inputs.route,
    )
    perceptual = None
    if networks is not None:
        perceptual = PerceptualLoss(
            config.flow.perceptual, networks.decode, network=networks.features
        )
    with training_step(transformer, batch, config, perceptual=perceptual) as losses:
        yield losses.total.mean()
