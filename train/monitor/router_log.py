"""Numbers on what a learned router does in training, over the whole global batch.

Shape legend: G samples of the global batch, L layers, E experts, k experts used at a time.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from regionroute.adapters import adapter_layers, routings
from regionroute.adapters.router_stats import (
    chosen_experts,
    expert_entropy,
    expert_histogram,
    routing_overlap,
)
from train.engine import distributed
from train.engine.distributed import Ranks
from train.monitor.logs import Reporter


class RouterLog:
    """Collects the choices of a step's micro-batches on every process, then reports them.

    Without a learned router it collects and reports nothing.

    Args:
        model: adapted, or anything that contains the adapted transformer.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._rows: list[Tensor] = []

    def collect(self, styles: Tensor) -> None:
        """Notes the choices of one micro-batch; call it inside `routed`, after the forward pass.

        Args:
            styles: long [B], which style each sample shows.
        """
        found = routings(self.model)
        if found:
            chosen = chosen_experts(found, len(styles)).flatten(1)
            self._rows.append(torch.cat([styles[:, None], chosen.to(styles.device)], 1))

    def report(self, step: int, ranks: Ranks, reporter: Reporter) -> dict[str, float]:
        """Writes what was collected; all processes must call it.

        Args:
            step: counted from 1.
            ranks: this process's place.
            reporter: gets histogram and entropy of every layer.

        Returns:
            "entropy" (mean over layers), "overlap_within" and "overlap_between" styles, for the
            row of losses; numbers without a pair of samples to compare are omitted.
        """
        rows, self._rows = self._rows, []
        if not rows:
            return {}
        table = distributed.gather_rows(torch.cat(rows), ranks).flatten(0, 1).long()
        layers = adapter_layers(self.model)
        chosen = table[:, 1:].unflatten(1, (len(layers), -1))  # [G,L,k]
        histogram = expert_histogram(chosen, next(iter(layers.values())).num_experts)
        entropy = expert_entropy(histogram)
        reporter.router(step, list(layers), histogram, entropy)
        within, between = routing_overlap(chosen, table[:, 0])
        numbers = {
            "entropy": float(entropy.mean()),
            "overlap_within": within,
            "overlap_between": between,
        }
        return {name: value for name, value in numbers.items() if not math.isnan(value)}
