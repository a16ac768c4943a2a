"""Folders that appear and disappear as a whole."""

import shutil
from pathlib import Path


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
