"""Checksums of a checkpoint's files: a flipped bit in an optimizer's state is found at resume."""

from __future__ import annotations

from pathlib import Path

from regionroute.errors import UserError
from regionroute.files import file_hash, read_json, write_json

CHECKSUMS_FILE = "checksums.json"
# Users and `regionroute calibrate` may change these afterwards; no training state is in them.
_NOT_CHECKED = ("experts.json", "README.md", CHECKSUMS_FILE)


def write_checksums(folder: Path) -> None:
    """Writes the hash of every file below a folder, by relative path, into ``checksums.json``."""
    write_json(folder / CHECKSUMS_FILE, {name: file_hash(folder / name) for name in _names(folder)})


def verify_checksums(folder: Path) -> None:
    """Compares a checkpoint's files with their checksums.

    Checkpoints of earlier versions have none and are not checked.

    Raises:
        UserError: a file is missing or has changed, or the checksums cannot be read.
    """
    path = folder / CHECKSUMS_FILE
    if not path.is_file():
        return
    expected = read_json(path)
    if not isinstance(expected, dict):
        raise _damaged(folder, f"{CHECKSUMS_FILE} is no table of checksums")
    for name, wanted in expected.items():
        file = folder / name
        if not file.is_file():
            raise _damaged(folder, f"{name} is missing")
        if file_hash(file) != wanted:
            raise _damaged(folder, f"{name} has changed since it was written")


def _names(folder: Path) -> list[str]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    names = (path.relative_to(folder).as_posix() for path in paths)
    return sorted(name for name in names if Path(name).name not in _NOT_CHECKED)


def _damaged(folder: Path, what: str) -> UserError:
    return UserError(
        f"{folder}: this checkpoint is damaged ({what}): delete the folder, and the same command "
        "continues from the one before"
    )
