"""Work spread over processes, in order, with the same bytes at any number of workers."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

import torch

from regionroute.errors import UserError

MOST_WORKERS = 256  # all are started at once; more than this is a slip of the finger

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread inside the block: sums then do not depend on the machine's cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def map_in_order(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, chunk: int = 1
) -> Iterator[Result]:
    """Like `map`, over processes.

    Args:
        function: picklable: a module's function or a partial of one.
        items: picklable arguments.
        workers: processes; with 1 everything runs here.
        chunk: items sent to a process at a time.

    Yields:
        Results in the order of items.

    Raises:
        UserError: a process died, as it does when the machine runs out of memory.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    # Not fork: this process may hold threads of torch and onnxruntime, whose locks a fork copies.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_quiet_worker)
    try:
        yield from pool.map(function, items, chunksize=chunk)
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process died, perhaps for want of memory: run the command again with "
            "--workers 1, what is made already is kept"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def default_workers(jobs: int, jobs_per_worker: int) -> int:
    """One process for every `jobs_per_worker` jobs, as starting one takes seconds; one a core."""
    return max(1, min(os.cpu_count() or 1, jobs // jobs_per_worker))


def _quiet_worker() -> None:
    """Ctrl-C is the parent's to answer; it then cancels what is left."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
