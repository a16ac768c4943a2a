"""A folder of photos, each to be searched for the same words."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from pseudo_labels.segment.given import LabelledObject, LabelledPhoto, Rejection
from regionroute.data.image_files import SUFFIXES
from regionroute.errors import UserError
from regionroute.files import shown_path
from regionroute.folders import check_input_folder


def list_photos(
    folder: str | Path, words: Iterable[str], skip: Path | None = None
) -> tuple[list[LabelledPhoto], list[Rejection]]:
    """The photos of a folder and its sub-folders, linked ones included.

    Args:
        folder: of the photos.
        words: object words.
        skip: a folder in it that is not searched, such as that of the results.

    Returns:
        Photos in the order of their names; and everything that was skipped, with the reason: other
        files, hidden ones, folders that cannot be opened or were searched already.

    Raises:
        UserError: no such folder, no photo in it, or it is the one that is skipped.
    """
    folder = Path(folder)
    check_input_folder(folder, "folder of photos")
    if skip is not None and os.path.realpath(skip) == os.path.realpath(folder):
        raise UserError(f"{skip}: this is the folder of the photos, give another for the results")
    objects = tuple(LabelledObject(" ".join(word.split())) for word in words)
    photos, rejected = [], []
    for path, problem in sorted(_search(folder, skip), key=lambda found: found[0]):
        name = path.relative_to(folder).as_posix()
        if problem is None:
            problem = _file_problem(path)
        if problem is None:
            photos.append(LabelledPhoto(name, path, 0, objects))
        else:
            rejected.append(Rejection(f"{shown_path(path)}: {problem}", name))
    if not photos:
        raise UserError(f"{folder}: there is no photo in this folder")
    return photos, rejected


def _file_problem(path: Path) -> str | None:
    if path.name.startswith("."):
        return "this file is hidden, it is skipped"
    if path.suffix.lower() not in SUFFIXES:
        return "this is not a photo by the ending of its name, it is skipped"
    return None


def _search(folder: Path, skip: Path | None) -> Iterator[tuple[Path, str | None]]:
    """Every file, with None; and every folder that is not searched, with the reason.

    Linked folders come after the others, so that no photo is found under a link's name first.
    """
    seen: set[str] = set()
    own, left_alone = os.path.realpath(folder), os.path.realpath(skip) if skip else None
    waiting = [folder]
    while waiting:
        linked: list[Path] = []
        for top in waiting:
            real = os.path.realpath(top)
            if real in seen:
                yield top, "this link leads to a folder that is searched already, it is skipped"
            elif top != folder and Path(own).is_relative_to(real):
                yield top, "this link leads to a folder around this one, it is skipped"
            else:
                yield from _walk(top, seen, left_alone, linked)
        waiting = sorted(linked)


def _walk(
    top: Path, seen: set[str], left_alone: str | None, linked: list[Path]
) -> Iterator[tuple[Path, str | None]]:
    failed: list[OSError] = []
    for name, folders, files in os.walk(top, onerror=failed.append):
        here, real = Path(name), os.path.realpath(name)
        if real in seen or real == left_alone:
            folders.clear()
            continue
        seen.add(real)
        for child in list(folders):
            if child.startswith("."):
                folders.remove(child)
                yield here / child, "this folder is hidden, it is skipped"
            elif (here / child).is_symlink():
                folders.remove(child)
                linked.append(here / child)
        yield from ((here / file, None) for file in files)
    for error in failed:
        yield Path(error.filename), f"this folder cannot be searched ({error.strerror})"
