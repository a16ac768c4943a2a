"""The moving average of the experts, at any ZeRO stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from regionroute.compat import gather_again, lerp_all, own_part, set_all
from train.engine.weights import (
    named_adapters,
    part_of,
    read_adapters,
    write_adapters,
)

FILE = "average.safetensors"


class MovingAverage:
    """Exponential moving average of the trained weights; each process averages its own part.

    After step t (from 0) ``average += (1 - d) · (weights - average)``, where d is the decay, or
    (1 + t)/(10 + t) while that is less: otherwise the random first weights would count for long.

    Args:
        module: the adapted transformer, inside its engine.
        decay: in (0,1).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay = module, decay
        self._parameters = list(named_adapters(module).values())
        self._average = [part.clone() for part in self._own()]

    def _own(self) -> list[Tensor]:
        return [own_part(parameter) for parameter in self._parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after a step (counted from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        lerp_all(self._average, self._own(), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Puts the average in the weights' place; all processes must enter, nobody may train."""
        kept = [part.clone() for part in self._own()]
        self._write(self._average)
        try:
            yield
        finally:
            self._write(kept)

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        set_all(self._own(), values)
        gather_again(self._parameters)

    def save(self, folder: Path, *, main: bool) -> None:
        """Writes the average whole into a folder; all processes must call it."""
        with self.applied():
            write_adapters(folder / FILE, self.module, main=main)

    def load(self, folder: Path) -> bool:
        """Restores the average; False, and it begins with the present weights, if there is none.

        Raises:
            UserError: the file is damaged, or of other experts.
        """
        self._average = [part.clone() for part in self._own()]
        if not (folder / FILE).is_file():
            return False
        state = read_adapters(folder / FILE, self.module)
        named = named_adapters(self.module)
        for average, (name, parameter) in zip(self._average, named.items(), strict=True):
            average.copy_(part_of(parameter, state[name]))
        return True
