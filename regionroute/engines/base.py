"""What an engine is asked for and what it answers."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from regionroute.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")
Worker = Callable[[Task], Result]
MakeWorker = Callable[[], Worker[Task, Result]]

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class EngineSettings:
    """Where tasks are done.

    Attributes:
        engine: "local" or "ray".
        workers: processes; None: the caller's choice, on Ray as many as the cluster has room for.
        ray_address: of a running cluster; None: $RAY_ADDRESS, else a cluster that is started on
            this machine and ends with the process.
        gpus: of each worker on Ray; fractions share a GPU.
    """

    engine: str = "local"
    workers: int | None = None
    ray_address: str | None = None
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise UserError(f"engine is {self.engine!r}: use one of {', '.join(ENGINES)}")

    @property
    def on_ray(self) -> bool:
        """Whether tasks are done on a Ray cluster."""
        return self.engine == "ray"

    @property
    def elsewhere(self) -> bool:
        """Whether tasks are done in other processes than the caller's."""
        return self.on_ray or (self.workers or 1) > 1

    @property
    def memory_share(self) -> float:
        """Share of a machine's memory, or of its GPU's, that one worker may plan with.

        To be asked in the worker: on Ray all workers may be on one machine, one for each core.
        """
        if self.on_ray and self.gpus:
            return min(1.0, self.gpus)
        cores = os.cpu_count() or 1
        return 1 / (min(self.workers or cores, cores) if self.on_ray else self.workers or 1)


@dataclass(frozen=True)
class Lost:
    """In place of a result: the task's worker died each time that it was tried.

    Attributes:
        reason: what happened, for the user.
    """

    reason: str
