"""One function for work that is done here or on a Ray cluster: `run`.

A task's result depends on the task alone, and results carry their task's number, so that what a
caller writes is the same whatever the engine, the number of workers and the order of completion.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from regionroute.engines.base import EngineSettings, Lost, MakeWorker, Result, Task


def run(
    tasks: Sequence[Task],
    make_worker: MakeWorker[Task, Result],
    settings: EngineSettings,
    *,
    workers: int = 1,
    block: int = 1,
) -> Iterator[tuple[int, Result | Lost]]:
    """Do tasks in several processes.

    Args:
        tasks: picklable.
        make_worker: picklable, such as a partial of a function of a module; called once in each
            process, where it loads the networks. What it returns does one task.
        settings: the engine; its number of workers goes before `workers`.
        workers: processes of the local engine; 1 does everything in this process.
        block: tasks that are sent to a process at once.

    Returns:
        Number and result of each task, as they are finished. A single local worker is made before
        this returns, so that what it lacks is reported before the work.

    Raises:
        UserError: what a worker raised, Ray is missing or not there, or a local worker died.
    """
    if settings.on_ray:
        from regionroute.engines.on_ray import run_on_ray

        return run_on_ray(tasks, make_worker, settings, block)
    workers = settings.workers or workers
    if workers <= 1:
        return enumerate(map(make_worker(), tasks) if tasks else ())
    from regionroute.engines.local import map_with

    return enumerate(map_with(make_worker, tasks, workers, block))
