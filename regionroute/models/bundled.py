"""The experts that come with a base, and the default base."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from regionroute.adapters import read_registry
from regionroute.errors import UserError
from regionroute.models import embedded as nano
from regionroute.models.source import resolve

# In a base's folder: experts that come with it, chosen by name, and by a style image.
EXPERTS_FOLDER, BY_EXAMPLE_FOLDER = "experts", "experts_by_example"


def default_base(experts: str | PathLike[str] | None) -> str:
    """The base to load when the user names none.

    Args:
        experts: a folder, a name as of `experts_folder`, "auto", "by_example" or None, see
            `RegionRoutePipeline.from_pretrained`.

    Raises:
        UserError: the folder holds no experts.
    """
    if experts is None or experts in ("auto", "by_example"):
        return nano.USUAL
    return read_registry(experts_folder(experts)).base


def find_experts(experts: str | PathLike[str], base: str) -> Path:
    """The folder of experts that are there and whose `experts.json` can be read.

    Args:
        experts: a folder, a name as of `experts_folder`, "auto" or "by_example".
        base: whose experts the last two are.

    Raises:
        UserError: there are none, or they cannot be read.
    """
    if experts in ("auto", "by_example"):
        folder = bundled_experts(base, by_example=experts == "by_example")
    else:
        folder = experts_folder(experts)
    read_registry(folder)
    return folder


def experts_folder(experts: str | PathLike[str]) -> Path:
    """The folder of experts: as given, or in the package for a name such as ``nano/experts``.

    Metadata of edits holds such names, so that they hold wherever the package is installed. A
    folder of that name wins.
    """
    folder = Path(experts)
    if not folder.exists() and str(folder.parent) in nano.NAMES:
        packaged = nano.nano_folder(str(folder.parent)) / folder.name
        return packaged if packaged.is_dir() else folder
    return folder


def find_bundled_experts(base: str, *, by_example: bool = False) -> Path | None:
    """The experts in a base's folder ``experts`` or ``experts_by_example``; None without any.

    Args:
        base: see `load_base`.
        by_example: those that take the style from a reference image.
    """
    source = resolve(base)
    if not isinstance(source, Path):
        return None
    folder = source / (BY_EXAMPLE_FOLDER if by_example else EXPERTS_FOLDER)
    return folder if (folder / "experts.json").is_file() else None


def bundled_experts(base: str, *, by_example: bool = False) -> Path:
    """As `find_bundled_experts`, but some are required.

    Raises:
        UserError: there are none.
    """
    folder = find_bundled_experts(base, by_example=by_example)
    if folder is not None:
        return folder
    kind = "experts for style images" if by_example else "experts"
    alone = "" if by_example else ", or edit with the base alone (--zero-shot, experts=None)"
    train = "experts.router=similarity " if by_example else ""
    raise UserError(
        f"base {base} comes without {kind}: train some with `regionroute train {train}"
        f"base.name={base}` and name their folder (--experts){alone}"
    )
