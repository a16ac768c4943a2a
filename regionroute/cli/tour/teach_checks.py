"""What ``regionroute teach`` refuses before it begins."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from regionroute.errors import UserError
from regionroute.files import file_hash
from regionroute.folders import check_atomic_folder
from regionroute.settings_files import check_page_output

STYLE_FILE, LABELS_FILE = "style.yaml", "labels.jsonl"
# In --out, replaced by a second run.
WRITTEN = (
    STYLE_FILE, LABELS_FILE, "pairs", "run", "experts", "edits", "scores", "report.html",
)  # fmt: skip
FEWEST = 6  # photos, so that there is one to test and a few to train on
GENERIC = "object"


def check_teach(args: argparse.Namespace) -> int:
    """Refuses, before any stage, what one of them would refuse late or not at all.

    Returns:
        The number of photos.

    Raises:
        UserError: names, folders or photos that cannot be used.
    """
    _check_words(args)
    by_images, by_pairs = (args.style_images, args.photos), (args.before, args.after)
    for given, other in ((by_images, by_pairs), (by_pairs, by_images)):
        if all(given) and not any(other):
            break
    else:
        raise UserError("give --style-images and --photos, or --before and --after")
    photos: Path = args.photos or args.before
    count = _check_photos(args, photos)
    _check_out(args.out, args.name)
    return count


def _check_words(args: argparse.Namespace) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", args.name, re.ASCII):
        raise UserError(f"--name {args.name}: use letters a to z, digits, '-' and '_'")
    for option in ("object", "phrase"):
        words = getattr(args, option)
        if words is not None and not any(letter.isalnum() for letter in words):
            raise UserError(f"--{option} {words!r}: give a word, or leave the option out")


def _check_photos(args: argparse.Namespace, photos: Path) -> int:
    """Count the photos; refuse too few, and images of the style or of the results among them."""
    from pseudo_labels.stylize.paired import images_by_stem

    styled = images_by_stem(args.style_images or args.after)
    found, problem = _listed(photos, args.object)
    _check_apart(args, photos, found)
    if args.after:
        stems = Counter(photo.stem for photo in found)
        twice = [str(photo) for photo in found if stems[photo.stem] > 1]
        if twice:
            raise UserError(f"--before: {twice[0]} and {twice[1]} have one name, rename one")
        lone = [photo for photo in found if photo.stem not in styled]
        problem = f"{args.after} has none named {lone[0].stem}" if lone else problem
        found = [photo for photo in found if photo.stem in styled]
    several = len({file_hash(photo) for photo in found})
    if several < FEWEST:
        labels, hint = photos / LABELS_FILE, f"; not used: {problem}" if problem else ""
        raise UserError(
            f"{labels if labels.exists() else photos}: {several} different photos are too few, "
            f"give {FEWEST} or more, better 20{hint}"
        )
    return several


def _listed(photos: Path, word: str | None) -> tuple[list[Path], str]:
    """The photos that will be labelled, and why the first of the others will not."""
    from pseudo_labels.segment.folder import list_photos
    from pseudo_labels.segment.given import read_labels

    labels = photos / LABELS_FILE
    if labels.exists():
        if word:
            raise UserError(f"--object {word}: {labels} names the objects, leave the option out")
        found, rejected = read_labels(labels)
    else:
        found, rejected = list_photos(photos, [GENERIC])
    files = [photo.path for photo in found if photo.path.is_file()]
    return files, rejected[0].reason if rejected else ""


def _check_apart(args: argparse.Namespace, photos: Path, found: Sequence[Path]) -> None:
    """Refuse folders whose images would count as photos."""
    for option in ("style_images", "after", "out"):
        folder = getattr(args, option)
        if folder is None:
            continue
        real, inside = folder.resolve(), photos.resolve()
        # A link among the photos leads there as well.
        if real.is_relative_to(inside) or any(p.resolve().is_relative_to(real) for p in found):
            raise UserError(
                f"--{option.replace('_', '-')} {folder}: it is inside the folder of the photos "
                f"({photos}), and what it holds would count as photos: name another folder"
            )


def _check_out(out: Path, name: str) -> None:
    """Refuse a folder in which files of another origin would be replaced.

    Raises:
        UserError: it holds files of these names, and not of an earlier `teach` of this style.
    """
    taken = [part for part in WRITTEN if (out / part).exists()]
    style = out / STYLE_FILE
    ours = style.is_file() and style.read_bytes().startswith(style_head(name).encode())
    if taken and not ours:
        raise UserError(
            f"--out {out}: nothing says that its {taken[0]} is of an earlier `teach --name "
            f"{name}`, and it would be replaced; name another folder"
        )
    check_atomic_folder(out / "experts")
    check_page_output(out / "report.html")


def style_head(name: str) -> str:
    """First line of a styles file that `teach` wrote."""
    return f"# written by `regionroute teach --name {name}`\n"
