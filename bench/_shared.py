"""Shared by the benchmarks: paired timing, peak memory, provenance of a number."""

import argparse
import gc
import logging
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from regionroute.settings_files import versions

# It logs an advertisement for a faster 4-bit kernel on some CPUs.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

RESULTS = Path(__file__).parent / "results"
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def provenance(packages: Sequence[str] = ("torch", "diffusers", "deepspeed")) -> dict[str, Any]:
    """Command, machine and versions: part of every result."""
    cuda = torch.cuda.is_available()
    return {
        "command": " ".join(["python", *sys.argv]),
        "machine": {
            "architecture": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name() if cuda else "cpu",
        },
        "versions": versions(packages),
    }


def add_result_argument(parser: argparse.ArgumentParser, name: str, device: str = "cpu") -> None:
    """Add ``--result FILE``; GPU results go to a separate file."""
    usual = RESULTS / (f"{name}.json" if device == "cpu" else f"{name}_{device}.json")
    parser.add_argument(
        "--result", type=Path, default=usual, help="output file (default: %(default)s)"
    )


def run_python(*arguments: object) -> None:
    """Run Python with arguments; raise if it fails."""
    print("$ python", *arguments, flush=True)
    subprocess.run([sys.executable, *map(str, arguments)], check=True)


def paired_seconds(
    methods: dict[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    *,
    warm: bool = True,
) -> dict[str, list[float]]:
    """Time all methods once per round, so that other load affects them alike.

    Args:
        methods: name -> callable.
        rounds: measured calls per method.
        clock: `time.process_time` counts CPU time only.
        warm: call each method once before, unmeasured.

    Returns:
        name -> seconds, one value per round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    names = list(methods)
    for run in methods.values() if warm else ():
        run()
    for turn in tqdm(range(rounds), desc="timing", unit="round", leave=False):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:  # rotate the order
            _synchronize()
            start = clock()
            methods[name]()
            _synchronize()
            seconds[name].append(clock() - start)
    return seconds


def median_ratio(seconds: dict[str, list[float]], name: str, rival: str) -> float:
    """Median over rounds of a method's time divided by its rival's in the same round."""
    pairs = zip(seconds[name], seconds[rival], strict=True)
    return statistics.median(a / b for a, b in pairs)


def quartiles(values: Sequence[float]) -> list[float]:
    """First quartile, median and third quartile."""
    return list(statistics.quantiles(values, n=4))


def peak_bytes(run: Callable[[], object]) -> int | None:
    """Peak memory that one call adds: on the GPU, else in a forked process.

    None if neither can be read (not Linux).
    """
    if torch.cuda.is_available():
        run()
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if not _RESET.exists():
        return None
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_peak_in_this_process, args=(run, send))
    process.start()
    process.join()
    return receive.recv() if receive.poll() else None


def _peak_in_this_process(run: Callable[[], object], send: Any) -> None:
    torch.set_num_threads(1)  # the parent's thread pool does not survive a fork
    gc.collect()
    before = _status("VmRSS")
    _RESET.write_text("5")  # reset the peak
    run()
    send.send(_status("VmHWM") - before)


def _status(key: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
