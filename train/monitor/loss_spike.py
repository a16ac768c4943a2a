"""When a loss has left what it used to be."""

from __future__ import annotations

import statistics
from collections import deque

WINDOW = 100  # steps that say what is usual
LEAST = 50  # of them, before anything is unusual
FLOOR = 0.01  # of the median: the smallest deviation that counts as one


class ExplosionGuard:
    """Compares a step's loss with the steps before it, by statistics that outliers do not move.

    Args:
        times: median absolute deviations above the median from which a loss has exploded; 0: never.
    """

    def __init__(self, times: float) -> None:
        self.times = times
        self._window: deque[float] = deque(maxlen=WINDOW)

    def limit(self) -> float | None:
        """The loss from which a step has exploded; None while too few steps were seen."""
        if not self.times or len(self._window) < LEAST:
            return None
        median = statistics.median(self._window)
        deviation = statistics.median(abs(loss - median) for loss in self._window)
        return median + self.times * max(deviation, FLOOR * abs(median))

    def accept(self, loss: float) -> bool:
        """Whether a step's loss is a usual one, which then counts among them."""
        limit = self.limit()
        if limit is not None and loss > limit:
            return False
        self._window.append(loss)
        return True
