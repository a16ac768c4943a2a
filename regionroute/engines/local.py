"""Work in several processes: results in order, the same bytes with any number of workers."""

import functools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from regionroute.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread inside the block, so that sums do not depend on the machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def map_in_order(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, chunk: int = 1
) -> Iterator[Result]:
    """Like `map`, in several processes; arguments as for `map_with`.

    Args:
        function: picklable, such as a function of a module or a partial of one.
        items: its arguments.
        workers: number of processes; 1 runs everything in this one.
        chunk: items sent to a process at once.

    Returns:
        Results in the order of items.
    """
    if workers <= 1:
        return map(function, items)
    return map_with(functools.partial(_itself, function), items, workers, chunk)


def map_with(
    make_worker: Callable[[], Callable[[Item], Result]],
    items: Sequence[Item],
    workers: int,
    chunk: int = 1,
) -> Iterator[Result]:
    """Like `map` in several processes, each of which makes the function for itself.

    Args:
        make_worker: picklable; called in each process with its first item.
        items: picklable.
        workers: number of processes.
        chunk: items sent to a process at once.

    Yields:
        Results in the order of items.

    Raises:
        UserError: a process died, as it does when the machine runs out of memory.
    """
    # Not fork: it would copy the locks of torch's and onnxruntime's threads.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(make_worker,))
    try:
        yield from pool.map(_do, items, chunksize=chunk)
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process died, probably out of memory: run the command again with "
            "--workers 1; finished work is kept"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_worker: Callable[[], Callable[[Any], Any]]  # of a process that `map_with` started


def _start(make_worker: Callable[[], Callable[[Any], Any]]) -> None:
    """Ignore Ctrl-C, which the parent process handles; keep what makes the worker."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _worker = functools.cache(make_worker)


def _do(item: Any) -> Any:
    return _worker()(item)


def _itself(function: Callable[[Item], Result]) -> Callable[[Item], Result]:
    return function


def default_workers(jobs: int, jobs_per_worker: int) -> int:
    """One process per `jobs_per_worker` jobs (starting one takes seconds), at most one per core."""
    return max(1, min(os.cpu_count() or 1, jobs // jobs_per_worker))
