"""What ``regionroute teach`` refuses before it begins."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from regionroute.errors import UserError
from regionroute.settings_files import check_page_output

STYLE_FILE, LABELS_FILE = "style.yaml", "labels.jsonl"
# In --out, replaced by a second run.
WRITTEN = (
    STYLE_FILE, LABELS_FILE, "pairs", "run", "experts", "edits", "scores", "report.html",
)  # fmt: skip
FEWEST = 6  # photos, so that there is one to test and a few to train on
GENERIC = "object"


def check_teach(args: argparse.Namespace) -> Path:
    """Refuses, before any stage, what one of them would refuse late or not at all.

    Returns:
        The folder of photos.

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
    _check_style_images(args, photos)
    _check_photos(photos, args.object)
    _check_out(args.out, args.name)
    return photos


def _check_words(args: argparse.Namespace) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", args.name, re.ASCII):
        raise UserError(f"--name {args.name}: use letters a to z, digits, '-' and '_'")
    for option in ("object", "phrase"):
        words = getattr(args, option)
        if words is not None and not any(letter.isalnum() for letter in words):
            raise UserError(f"--{option} {words!r}: give a word, or leave the option out")


def _check_style_images(args: argparse.Namespace, photos: Path) -> None:
    """Refuse folders whose images would count as photos, and one of the style without images."""
    from pseudo_labels.stylize.paired import images_by_stem

    for option in ("style_images", "after", "out"):
        folder = getattr(args, option)
        if folder is not None and folder.resolve().is_relative_to(photos.resolve()):
            raise UserError(
                f"--{option.replace('_', '-')} {folder}: it is inside the folder of the photos "
                f"({photos}), and what it holds would count as photos: name another folder"
            )
    images_by_stem(args.style_images or args.after)


def _check_photos(photos: Path, word: str | None) -> None:
    """Refuse a word beside labels, and too few photos."""
    from pseudo_labels.segment.folder import list_photos
    from pseudo_labels.segment.given import read_labels

    labels = photos / LABELS_FILE
    if labels.is_file():
        if word:
            raise UserError(f"--object {word}: {labels} names the objects, leave the option out")
        (found, rejected), source = read_labels(labels), labels
    else:
        (found, rejected), source = list_photos(photos, [GENERIC]), photos
    if len(found) < FEWEST:
        first = f"; not used: {rejected[0].reason}" if rejected else ""
        raise UserError(
            f"{source}: {len(found)} photos are too few, give {FEWEST} or more, better 20{first}"
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
            f"--out {out}: its {taken[0]} is not of an earlier `teach --name {name}` and would be "
            "replaced; name another folder"
        )
    check_page_output(out / "report.html")


def style_head(name: str) -> str:
    """First line of a styles file that `teach` wrote."""
    return f"# written by `regionroute teach --name {name}`\n"
