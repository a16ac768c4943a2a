"""Tasks on a Ray cluster: actors hold the workers, each has one block of tasks at a time.

Ray starts, places and watches the actors. A block whose actor died is not tied to it, as it would
be with Ray's `max_task_retries`: where a node is gone for good, no actor could ever do it. It
waits for whichever actor is free next.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from regionroute.engines.base import EngineSettings, Lost, MakeWorker, Result, Task
from regionroute.errors import UserError
from regionroute.remote import enter, environment

ATTEMPTS = 3  # of a task whose worker dies


def run_on_ray(
    tasks: Sequence[Task],
    make_worker: MakeWorker[Task, Result],
    settings: EngineSettings,
    block: int = 1,
) -> Iterator[tuple[int, Result | Lost]]:
    """Do tasks in the actors of a cluster; arguments as for `regionroute.engines.run.run`.

    Yields:
        Number and result of each task, in the order of completion; `Lost` for a task whose actor
        died `ATTEMPTS` times. Of a block, each task is then tried by itself.

    Raises:
        UserError: what a worker raised, there is no cluster, or no actor stays alive.
    """
    if not tasks:
        return
    ray = connect(settings)
    crew = _Crew(ray, make_worker, settings)
    waiting = deque(
        list(range(first, min(first + block, len(tasks)))) for first in range(0, len(tasks), block)
    )
    left, failures = len(tasks), Counter[int]()
    try:
        while left:
            while waiting and crew.idle:
                numbers = waiting.popleft()
                crew.give(numbers, [tasks[number] for number in numbers])
            numbers, results = crew.next_done()
            if results is not None:
                left -= len(numbers)
                yield from zip(numbers, results, strict=True)
                continue
            failures.update(numbers)
            lost = [number for number in numbers if failures[number] >= ATTEMPTS]
            waiting.extend([number] for number in numbers if failures[number] < ATTEMPTS)
            left -= len(lost)
            yield from ((number, crew.lost) for number in lost)
    finally:
        crew.stop()


class _Crew:
    """The actors and what each is doing.

    An actor begins with an empty block, which it finishes once its worker is made: one that the
    cluster has no room for yet keeps no task waiting.

    Attributes:
        idle: actors that have nothing to do.
        lost: what a task is given whose actors died.
    """

    def __init__(
        self, ray: Any, make_worker: MakeWorker[Task, Result], settings: EngineSettings
    ) -> None:
        import torch

        self.lost = Lost(f"its worker died {ATTEMPTS} times, probably out of memory")
        self._ray = ray
        self._make = ray.put(make_worker)
        self._threads = torch.get_num_threads()
        self._class = ray.remote(_Actor).options(
            num_cpus=1, num_gpus=settings.gpus, scheduling_strategy="SPREAD"
        )
        self.idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, list[int]]] = {}
        self._stillborn = 0
        for _ in range(settings.workers or _room(ray, settings.gpus)):
            self._start()

    def _start(self) -> None:
        actor = self._class.remote([self._make], os.getcwd(), self._threads, environment())
        self._busy[actor.do.remote([])] = actor, []

    def give(self, numbers: list[int], tasks: list[Any]) -> None:
        """Give a block to an idle actor."""
        actor = self.idle.pop()
        self._busy[actor.do.remote(tasks)] = actor, numbers

    def next_done(self) -> tuple[list[int], list[Any] | None]:
        """The next block that is done, and its results; None: its actor died and is replaced.

        Raises:
            UserError: what the worker raised, or actors die before they do anything.
        """
        from ray.exceptions import RayError, RayTaskError

        [done], _ = self._ray.wait(list(self._busy), num_returns=1)
        actor, numbers = self._busy.pop(done)
        try:
            results = self._ray.get(done)
        except RayTaskError as error:
            raise (error.cause or error) from None
        except RayError as error:
            self._stillborn += not numbers
            if self._stillborn >= ATTEMPTS:
                raise UserError(
                    f"--engine ray: workers die when they start, see the logs of Ray ({error})"
                ) from error
            self._start()
            return numbers, None
        self._stillborn = 0
        self.idle.append(actor)
        return numbers, results

    def stop(self) -> None:
        """End all actors."""
        for actor in [*self.idle, *(actor for actor, _ in self._busy.values())]:
            self._ray.kill(actor)


class _Actor:
    """A process of the cluster with a worker, in the folder in which the command was given."""

    def __init__(
        self, make_worker: list[Any], folder: str, threads: int, staging: dict[str, str]
    ) -> None:
        self._make_worker, self._folder, self._threads = make_worker, folder, threads
        self._staging = staging
        self._worker: Callable[[Any], Any] | None = None

    def do(self, tasks: list[Any]) -> list[Any]:
        """Results of a block; the first call makes the worker."""
        if self._worker is None:
            self._worker = self._made()
        return [self._worker(task) for task in tasks]

    def _made(self) -> Callable[[Any], Any]:
        import ray

        if not Path(self._folder).is_dir():
            raise UserError(
                f"{self._folder}: this folder is not on node {ray.util.get_node_ip_address()}, "
                "start the command in a folder that all nodes share"
            )
        enter(self._staging)
        os.chdir(self._folder)
        os.environ["OMP_NUM_THREADS"] = str(self._threads)  # torch's; sums depend on it
        worker: Callable[[Any], Any] = ray.get(self._make_worker[0])()
        return worker


def connect(settings: EngineSettings) -> Any:
    """The module `ray`, connected to a cluster until this process ends.

    Raises:
        UserError: Ray is not installed, or there is no cluster at the address.
    """
    # Ray would send statistics home.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise UserError("--engine ray: Ray is missing: pip install 'regionroute[ray]'") from error
    if ray.is_initialized():
        return ray
    address = settings.ray_address or os.environ.get("RAY_ADDRESS") or "local"
    more = {"include_dashboard": False} if address == "local" else {}

    def start() -> None:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **more)

    try:
        _again(start, ray.shutdown, ATTEMPTS if address == "local" else 1)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"--ray-address {address}: no cluster answers there ({error}); start one with "
            "`ray start --head`, or leave the option out"
        ) from error
    nodes = sum(node["Alive"] for node in ray.nodes())
    print(f"ray: {address}, {nodes} node{'s' * (nodes > 1)}", file=sys.stderr)
    if settings.gpus > ray.cluster_resources().get("GPU", 0):
        print(f"ray: waiting for a node with {settings.gpus:g} GPUs", file=sys.stderr)
    return ray


def _again(start: Callable[[], None], stop: Callable[[], None], attempts: int) -> None:
    """Start a cluster; on a busy machine Ray gives up after 30 s, and says so by `Exception`."""
    for left in reversed(range(attempts)):
        try:
            return start()
        except Exception as error:
            if not left or type(error) is not Exception:
                raise
            stop()


def _room(ray: Any, gpus: float) -> int:
    """How many workers of one core and so many GPUs the cluster has room for."""
    there = ray.cluster_resources()
    cores = int(there.get("CPU", 1))
    return max(1, min(cores, int(there.get("GPU", 0) / gpus)) if gpus else cores)
