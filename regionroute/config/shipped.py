"""The configurations that come with the package, found by name from any folder."""

from __future__ import annotations

from pathlib import Path

from regionroute.errors import UserError, nearest
from regionroute.files import AnyPath

_PACKAGE = Path(__file__).resolve().parents[1]
# In a wheel a folder of the package (see setup.py), in a clone the one next to it.
FOLDER = next(
    (place for place in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if place.is_dir()),
    _PACKAGE / "configs",
)


def shipped_names() -> list[str]:
    """Names that `find_config` takes: the shipped YAML files without their suffix."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def shipped_file(path: AnyPath) -> Path:
    """The file itself; if there is none, the shipped one that ``NAME`` or ``configs/NAME`` means.

    Returns:
        An existing file, or `path` unchanged.
    """
    path = Path(path)
    if path.is_file() or path.parent.name not in ("", "configs") or len(path.parts) > 2:
        return path
    shipped = FOLDER / path.name
    return shipped if path.name and shipped.is_file() else path


def find_config(path: AnyPath) -> Path:
    """A configuration by path, or by the name of a shipped one, such as ``nano_photos``.

    Raises:
        UserError: a bare name that is neither a file nor a shipped configuration.
    """
    path = Path(path)
    names, bare = shipped_names(), len(path.parts) == 1 and not path.suffix
    shipped = bare and path.name in names  # a folder of that name, say of a run, does not hide it
    if not path.name or (path.exists() and not (shipped and path.is_dir())):
        return path
    if bare:
        if shipped:
            return FOLDER / f"{path.name}.yaml"
        near = f"; did you mean {nearest(path.name, names)}?" if names else ""
        raise UserError(
            f"{path}: no such file, and no shipped configuration has this name{near} "
            f"(shipped: {', '.join(names) or 'none'})"
        )
    return shipped_file(path)
