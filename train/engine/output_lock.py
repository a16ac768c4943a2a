"""One run at a time in an output folder, and a run that notices when its folder is gone."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from regionroute.errors import UserError

LOCK_FILE = ".lock"
_UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # by some network file systems


@contextmanager
def locked_output(folder: Path) -> Iterator[None]:
    """Holds the lock of an output folder, which is made if it is missing.

    The operating system releases the lock when the process ends in whatever way, so the file of a
    killed run is never in the way of the next one.

    Args:
        folder: of the run.

    Raises:
        UserError: another process holds the lock; it is named.
    """
    with _acquired(folder) as file:
        _write_holder(file)
        try:
            yield
        finally:
            if _is_at(file, folder / LOCK_FILE):
                (folder / LOCK_FILE).unlink(missing_ok=True)


def _acquired(folder: Path) -> IO[str]:
    """The locked file, opened; the one that lies in the folder now."""
    path = folder / LOCK_FILE
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
        try:
            _acquire(file, folder)
        except BaseException:
            file.close()
            raise
        if _is_at(file, path):  # and was not removed by the run before, as it ended
            return file
        file.close()


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _acquire(file: IO[str], folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(
            f"{folder}: another run is writing to this folder ({_holder(file)}): wait until it has "
            "finished, stop it, or choose another output"
        ) from error
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def _write_holder(file: IO[str]) -> None:
    file.truncate(0)
    facts = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": shlex.join(sys.argv),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    file.write(json.dumps(facts) + "\n")
    file.flush()


def _holder(file: IO[str]) -> str:
    """Who holds the lock, as far as the file says."""
    file.seek(0)
    try:
        facts: dict[str, Any] = json.loads(file.read())
        return (
            f"process {facts['pid']} on {facts['host']}, started {facts['since']}: "
            f"{facts['command']}"
        )
    except (ValueError, KeyError, TypeError):
        return "a process that has just started"


def check_log_is_there(path: Path) -> None:
    """Check that a log file of this run was not deleted.

    Raises:
        UserError: the file is missing.
    """
    if not path.exists():
        raise UserError(
            f"{path}: this file was deleted during the run, which has stopped: start it again and "
            "leave its folder alone until it ends"
        )
