"""Loss spikes: a step's loss far above those of the steps before it."""

from __future__ import annotations

import statistics
from collections import deque

WINDOW = 100  # steps that the median is taken over
LEAST = 50  # steps in the window before a spike can be detected
FLOOR = 0.01  # smallest deviation, as a fraction of the median


class LossSpikeGuard:
    """Compares a step's loss with the median and the median absolute deviation of a window.

    Args:
        times: median absolute deviations above the median at which a loss is a spike; 0: off.
    """

    def __init__(self, times: float) -> None:
        self.times = times
        self._window: deque[float] = deque(maxlen=WINDOW)

    def limit(self) -> float | None:
        """The loss above which a step is a spike; None while too few steps have been seen."""
        if not self.times or len(self._window) < LEAST:
            return None
        median = statistics.median(self._window)
        deviation = statistics.median(abs(loss - median) for loss in self._window)
        return median + self.times * max(deviation, FLOOR * abs(median))

    def accept(self, loss: float) -> bool:
        """Whether a step's loss is no spike; it then enters the window."""
        limit = self.limit()
        if limit is not None and loss > limit:
            return False
        self._window.append(loss)
        return True
