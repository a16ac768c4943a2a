"""What comes with a base, and which base is meant when none is named."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from regionroute.adapters import read_registry
from regionroute.errors import UserError
from regionroute.models import embedded as nano
from regionroute.models.source import resolve

# Of a base's folder: experts that come with it, chosen by name, and by an example picture.
EXPERTS_FOLDER, BY_EXAMPLE_FOLDER = "experts", "experts_by_example"


def usual_base(experts: str | PathLike[str] | None) -> str:
    """The base that goes with experts when none is named.

    Args:
        experts: as for `load_editor`: a folder, "auto", "by_example" or None.

    Raises:
        UserError: the folder holds no experts.
    """
    if experts == "by_example":
        return nano.SCENES
    return nano.USUAL if experts in (None, "auto") else read_registry(experts).base


def bundled_experts(base: str, *, by_example: bool = False) -> Path:
    """The experts that come with a base, in its folder ``experts`` or ``experts_by_example``.

    Args:
        base: see `load_editor`.
        by_example: those that take the style from an example picture.

    Raises:
        UserError: there are none.
    """
    source = resolve(base)
    name = BY_EXAMPLE_FOLDER if by_example else EXPERTS_FOLDER
    folder = source / name if isinstance(source, Path) else None
    if folder is not None and (folder / "experts.json").is_file():
        return folder
    kind = "experts that take an example picture" if by_example else "experts"
    train = "experts.router=similarity " if by_example else ""
    zero_shot = "" if by_example else ", or pass --zero-shot to use the base alone"
    raise UserError(
        f"base {base} comes without {kind}: train some with `python train/run.py {train}"
        f"base.name={base}` and pass --experts DIR{zero_shot}"
    )
