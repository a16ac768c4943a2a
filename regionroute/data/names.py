"""The ids and paths that a manifest or a labels file may hold."""

import os
import re
from pathlib import Path, PurePosixPath, PureWindowsPath

LONGEST_ID = 200  # bytes; file systems take 255 with the endings we add


def id_problem(name: str) -> str | None:
    """Why an id cannot name files; None if it can."""
    if not name or name.startswith(".") or re.search(r'[/\\:*?"<>|\x00-\x1f]', name):
        return f"id {name!r} cannot be a file name, use letters, digits, '-', '_' and '.'"
    if len(name.encode()) > LONGEST_ID:
        return f"id {name[:20]!r}... is too long for a file name, use {LONGEST_ID} letters"
    return None


def path_problem(relative: str, folder: str = "the manifest's folder") -> str | None:
    """Why a path cannot be used, by its text alone; None if it can.

    Args:
        relative: the path as written.
        folder: what it is relative to, for the sentence.
    """
    if not relative or "\x00" in relative:
        return "it names no file"
    if PureWindowsPath(relative).drive:
        return f"it must be relative to {folder}"
    if "\\" in relative:
        shown = relative.replace("\\", "/")
        return f"write it with forward slashes, {shown!r}"
    path = PurePosixPath(relative)
    if path.is_absolute():
        return f"it must be relative to {folder}"
    if ".." in path.parts:
        return f"it must stay inside {folder}"
    return None


def leaves_folder(folder: Path, relative: str) -> bool:
    """Whether a relative path leads out of its folder through a link."""
    # Not Path.resolve, which raises where links lead in a circle.
    path = Path(os.path.realpath(folder / relative))
    return not path.is_relative_to(os.path.realpath(folder))
