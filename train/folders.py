"""Folders that appear and disappear as a whole."""

import shutil
from pathlib import Path


def replace_folder(new: Path, old: Path) -> None:
    """Renames a folder over another; between the two renames neither is lost."""
    if old.exists():
        remove_folder(old)
    new.rename(old)


def remove_folder(folder: Path) -> None:
    """Hides a folder, then deletes it: half of a deleted checkpoint must not look complete."""
    hidden = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(hidden, ignore_errors=True)
    folder.rename(hidden)
    shutil.rmtree(hidden)
