"""Files of a data set at its end: what people struck out, what came out as it was."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from regionroute.errors import UserError
from regionroute.files import atomic_write, numbered_lines

STRUCK_FILE = "struck.txt"


def read_struck(out: Path) -> frozenset[str]:
    """Ids of samples that are to stay out of the manifest.

    Args:
        out: the data set's folder; `struck.txt` in it holds an id a line, "#" begins a remark.

    Raises:
        UserError: the file is not text.
    """
    file = out / STRUCK_FILE
    if not file.exists():
        return frozenset()
    lines = (line.split("#")[0].strip() for _, line in numbered_lines(file))
    return frozenset(line for line in lines if line)


def add_struck(out: Path, source: Path) -> None:
    """Add the ids of another file, such as the one the review page saved, to the data set's own.

    Raises:
        UserError: there is no such file, or it is not text.
    """
    if not source.is_file():
        raise UserError(f"{source}: no such list of struck samples, save it on the review page")
    added = {line.split("#")[0].strip() for _, line in numbered_lines(source)} - {""}
    ids = sorted(read_struck(out) | added)
    with atomic_write(out / STRUCK_FILE) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in ids), encoding="utf-8")


def write_keeping_time(path: Path, write: Callable[[Path, Any], None], content: Any) -> None:
    """Write a file; one that comes out as it was keeps its time of change, so that it tells.

    Args:
        path: the file.
        write: writes `content` to a path.
        content: what to write.
    """
    before = (path.read_bytes(), path.stat()) if path.is_file() else None
    write(path, content)
    if before is not None and path.read_bytes() == before[0]:
        os.utime(path, ns=(before[1].st_atime_ns, before[1].st_mtime_ns))
