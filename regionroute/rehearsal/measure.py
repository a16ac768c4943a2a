"""Time and memory of a command in its own process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

INTERVAL = 0.2  # seconds between two looks at the memory


@dataclass(frozen=True)
class Measured:
    """What a command took.

    Attributes:
        status: its exit status; negative: the signal that ended it.
        seconds: wall time.
        peak: most resident bytes, mapped files included.
        own: most resident bytes without mapped files, which the system can drop; None where
            /proc does not say.
    """

    status: int
    seconds: float
    peak: int
    own: int | None


def measured(command: Sequence[str], log: Path) -> Measured:
    """Runs a command to its end.

    Args:
        command: program and arguments.
        log: what it prints is appended here.
    """
    environment = {"PYTHONUNBUFFERED": "1", **os.environ}
    began, peak, own = time.perf_counter(), 0, 0
    with log.open("ab") as file:
        child = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
        try:
            while True:
                done, status, usage = os.wait4(child.pid, os.WNOHANG)
                if done:
                    break
                found = _memory(child.pid)
                peak, own = max(peak, found[0]), max(own, found[1])
                time.sleep(INTERVAL)
        except BaseException:
            child.kill()
            raise
    child.returncode = os.waitstatus_to_exitcode(status)  # it must not be waited for again
    seconds = time.perf_counter() - began
    # Linux counts there what the starting process held too, so it is the last resort.
    unit = 1 if sys.platform == "darwin" else 1024
    return Measured(child.returncode, seconds, peak or usage.ru_maxrss * unit, own or None)


def _memory(pid: int) -> tuple[int, int]:
    """The peak so far and what is not mapped from files, in bytes; 0 where that is not known."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    sizes = {
        name: 1024 * int(values[name].split()[0])
        for name in ("VmHWM", "RssAnon", "RssShmem")
        if name in values
    }
    return sizes.get("VmHWM", 0), sizes.get("RssAnon", 0) + sizes.get("RssShmem", 0)
