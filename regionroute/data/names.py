"""The ids and paths that may stand in a manifest, judged by their text alone."""

import re
from pathlib import PurePosixPath, PureWindowsPath

LONGEST_ID = 200  # bytes; file systems take 255 with the endings we add


def id_problem(name: str) -> str | None:
    """Why an id cannot name files; None if it can."""
    if not name or name.startswith(".") or re.search(r'[/\\:*?"<>|\x00-\x1f]', name):
        return f"id {name!r} cannot be a file name, use letters, digits, '-', '_' and '.'"
    if len(name.encode()) > LONGEST_ID:
        return f"id {name[:20]!r}... is too long for a file name, use {LONGEST_ID} letters"
    return None


def path_problem(relative: str) -> str | None:
    """Why a path cannot stand in a manifest; None if it can."""
    if not relative or "\x00" in relative:
        return "it names no file"
    if "\\" in relative:
        return "write it with forward slashes"
    path = PurePosixPath(relative)
    if path.is_absolute() or PureWindowsPath(relative).drive:
        return "it must be relative to the manifest's folder"
    if ".." in path.parts:
        return "it must stay inside the manifest's folder"
    return None
