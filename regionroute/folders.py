"""Folders that are complete or not there at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from regionroute.errors import UserError
from regionroute.files import AnyPath, check_output_folder, shown_path


def check_new_folder(path: AnyPath) -> None:
    """As `check_output_folder`, for a folder that must not hold anything yet.

    Raises:
        UserError: it cannot be made, is not empty, or is the current folder.
    """
    check_output_folder(path)
    folder = Path(path).resolve()
    if folder == Path.cwd():
        raise UserError(f"{shown_path(path)}: this is the current folder, name a new one")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{shown_path(path)}: the folder is not empty, name a new one")


@contextmanager
def atomic_folder(path: Path, replace: bool = True) -> Iterator[Path]:
    """Yields a hidden name beside a folder, to be made; it becomes `path` when the block ends well.

    Args:
        path: the folder, or a link to it, which stays.
        replace: an older folder; else one that is not empty is refused. After an error nothing is
            left of the new one.

    Raises:
        OSError: the older folder is not empty, and not to be replaced.
    """
    path = path.resolve()
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
