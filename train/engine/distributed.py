"""Processes of one training run: how they start, meet, and agree.

The same entry point serves plain ``python`` (one process), ``deepspeed`` and ``torchrun``, on
GPUs (NCCL) and on CPUs (gloo).
"""

import logging
import os
import socket
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from regionroute.compat import is_partitioned, skip_shared_memory_op
from regionroute.errors import UserError

T = TypeVar("T")

_own_settings: list[str] = []  # environment variables that `start` set for a single process


class SharedMistake(UserError):
    """A user's mistake that all processes know of, so that one of them can say it."""


@dataclass(frozen=True)
class Ranks:
    """This process among all: its number, their count, and the device it computes on."""

    rank: int
    world: int
    device: torch.device

    @property
    def main(self) -> bool:
        """True for the process that writes files and talks to the terminal."""
        return self.rank == 0


def start(local_rank: int | None = None) -> Ranks:
    """Joins the process group; call once, before anything else of this module.

    Args:
        local_rank: the number the ``deepspeed`` launcher hands over on the command line; the
            environment variable LOCAL_RANK (torchrun) is used when it is None.

    Returns:
        This process's place in the group.
    """
    _default_environment(local_rank)
    # Where there is no GPU, it says at import what it cannot do there.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import deepspeed  # reads the environment when imported

    on_gpu = torch.cuda.is_available()
    local = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    else:
        _share_cores()
        skip_shared_memory_op(deepspeed)
    with quiet():
        # Without auto_mpi_discovery=False a start by plain python wants mpi4py.
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def stop() -> None:
    """Leaves the process group, so that the same Python process may train again."""
    if dist.is_initialized():
        import deepspeed

        deepspeed.comm.destroy_process_group()
    while _own_settings:
        os.environ.pop(_own_settings.pop(), None)


def _default_environment(local_rank: int | None) -> None:
    """What a launcher would have set, for a start by plain ``python``."""
    on_gpu = torch.cuda.is_available()
    if local_rank is not None and local_rank >= 0:
        os.environ.setdefault("LOCAL_RANK", str(local_rank))
    if "RANK" not in os.environ:
        _set(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))
    if "LOCAL_RANK" not in os.environ:
        _set(LOCAL_RANK="0")
    if not on_gpu and "DS_ACCELERATOR" not in os.environ:
        _set(DS_ACCELERATOR="cpu")
    here_alone = os.environ.get("MASTER_ADDR") in ("127.0.0.1", "localhost")
    if not on_gpu and here_alone and sys.platform == "linux":
        # gloo would look the host name up, which fails on machines without a network.
        if "GLOO_SOCKET_IFNAME" not in os.environ:
            _set(GLOO_SOCKET_IFNAME="lo")


def _set(**values: str) -> None:
    os.environ.update(values)
    _own_settings.extend(values)


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _share_cores() -> None:
    """Gives each process of this machine its part of the cores, unless the user decided."""
    if "OMP_NUM_THREADS" in os.environ:
        return
    here = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or "1"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(max(1, (cores or 1) // int(here)))


def log_library_to(path: Path, ranks: Ranks) -> None:
    """Sends DeepSpeed's log to a file, so that the terminal keeps one readable progress bar."""
    logger = logging.getLogger("DeepSpeed")
    if not ranks.main:
        logger.setLevel(logging.ERROR)
        return
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    handler = logging.FileHandler(path, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


@contextmanager
def quiet() -> Iterator[None]:
    """Silences library warnings the user can do nothing about while DeepSpeed builds things."""
    logger = logging.getLogger("DeepSpeed")
    level = logger.level
    logger.setLevel(max(level, logging.ERROR) if _logs_to_terminal(logger) else level)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _logs_to_terminal(logger: logging.Logger) -> bool:
    return any(not isinstance(handler, logging.FileHandler) for handler in logger.handlers)


def barrier() -> None:
    """Waits for all processes."""
    dist.barrier()


def agree(action: Callable[[], T]) -> T:
    """Runs `action` on every process; a user's mistake met by one ends it for all.

    Without this a process that stops leaves the others waiting in their next collective.

    Args:
        action: must not use collectives itself.

    Returns:
        What `action` returned on this process.

    Raises:
        SharedMistake: the first process's sentence, the same on all processes.
    """
    result: list[T] = []
    mistake: str | None = None
    try:
        result.append(action())
    except UserError as error:
        mistake = str(error)
    mistakes: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(mistakes, mistake)
    for sentence in mistakes:
        if sentence is not None:
            raise SharedMistake(sentence)
    return result[0]


def everyones(value: T) -> list[T]:
    """The values of all processes by their numbers; all must call it."""
    values: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def gather_rows(rows: Tensor, ranks: Ranks) -> Tensor:
    """Collects equal-shaped rows of all processes.

    Args:
        rows: [n,k] of any device.
        ranks: this process's place.

    Returns:
        [world,n,k] float64 on the CPU, the same on all processes.
    """
    mine = rows.detach().to(ranks.device, torch.float64).contiguous()
    parts = [torch.empty_like(mine) for _ in range(ranks.world)]
    dist.all_gather(parts, mine)
    return torch.stack(parts).cpu()


@contextmanager
def gathered(parameters: Iterable[torch.nn.Parameter]) -> Iterator[None]:
    """Makes parameters whole that ZeRO-3 keeps in pieces; all processes must enter.

    Read only: changes are not handed back. A no-op for parameters that are whole.
    """
    pieces = [parameter for parameter in parameters if is_partitioned(parameter)]
    if not pieces:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(pieces, modifier_rank=None):
        yield
