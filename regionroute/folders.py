"""Folders that are complete or not there at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from regionroute.errors import UserError
from regionroute.files import AnyPath, check_output_folder, shown_path


def check_input_folder(path: AnyPath, kind: str = "folder") -> None:
    """Refuses what is no folder.

    Args:
        path: the folder.
        kind: what it is meant to be, for the error's sentence.

    Raises:
        UserError: it is missing, or a file.
    """
    if Path(path).is_dir():
        return
    if os.path.exists(path):
        raise UserError(f"{shown_path(path)}: this is a file, give a {kind}")
    raise UserError(f"{shown_path(path)}: no such {kind}, check the path")


def check_atomic_folder(path: AnyPath) -> Path:
    """Refuses a folder that `atomic_folder` could not make or replace; returns it without links.

    Raises:
        UserError: it or a part of its path is a file, there is no permission, the current folder
            is in it, or a file system is mounted there.
    """
    check_output_folder(path)
    folder = Path(path).resolve()
    check_output_folder(folder.parent)  # it is made there under another name first
    if Path.cwd().is_relative_to(folder):
        raise UserError(f"{shown_path(path)}: the current folder is in it, choose another folder")
    if folder.is_mount():
        raise UserError(f"{shown_path(path)}: a disk is mounted there, name a folder inside it")
    return folder


def check_new_folder(path: AnyPath) -> None:
    """As `check_atomic_folder`, for a folder that must not hold anything yet.

    Raises:
        UserError: the same, or it is not empty.
    """
    folder = check_atomic_folder(path)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{shown_path(path)}: the folder is not empty, name a new one")


@contextmanager
def atomic_folder(path: Path, replace: bool = True) -> Iterator[Path]:
    """Yields a hidden name beside a folder, to be made; it becomes `path` when the block ends well.

    After an error nothing is left of the new one, and an older one is as it was.

    Args:
        path: the folder, or a link to it, which stays.
        replace: whether an older folder is replaced; if not, it must be missing or empty.

    Raises:
        UserError: see `check_atomic_folder`.
        OSError: the older folder is not empty, and not to be replaced.
    """
    path = check_atomic_folder(path)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
        if not replace and path.exists():
            path.rmdir()  # refuses one that is not empty
        replace_folder(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace_folder(new: Path, old: Path) -> None:
    """Renames a folder over another; whenever this is cut off, one of the two is complete."""
    hidden = _hidden(old)
    if old.exists():
        old.rename(hidden)
    new.rename(old)
    shutil.rmtree(hidden, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Hides a folder, then deletes it: half of a deleted checkpoint must not look complete."""
    hidden = _hidden(folder)
    folder.rename(hidden)
    shutil.rmtree(hidden)


def _hidden(folder: Path) -> Path:
    """A free hidden name beside a folder."""
    hidden = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(hidden, ignore_errors=True)
    return hidden
