"""Renamed settings: files, overrides and stored settings that use an old name are still read.

A model of settings lists its old names in a class variable, old name -> new name::

    class TrainConfig(Section):
        renamed: ClassVar = {"explosion": "loss_spike"}

        loss_spike: NonNegative = Field(100.0, description="...")

Both names belong to the same group of settings. The group itself is renamed in the model above it.
"""

import os
import sys
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from regionroute.errors import UserError


def group_of(info: FieldInfo) -> type[BaseModel] | None:
    """The model class of a field that is a group of settings, None for a single value."""
    kind = info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def old_names(model: type[BaseModel]) -> Mapping[str, str]:
    """The old names that a model still reads, old -> new."""
    return getattr(model, "renamed", {})


def current_key(key: str, model: type[BaseModel]) -> str:
    """A dotted key with every old name in it replaced; unknown parts stay as they are."""
    parts = []
    group: type[BaseModel] | None = model
    for part in key.split("."):
        name = part if group is None else old_names(group).get(part, part)
        info = group.model_fields.get(name) if group is not None else None
        group = group_of(info) if info is not None else None
        parts.append(name)
    return ".".join(parts)


def with_current_names(
    settings: Mapping[str, Any],
    model: type[BaseModel],
    source: str,
    *,
    quiet: bool = False,
) -> dict[str, Any]:
    """A copy of settings, as a file or an experts folder stores them, under the current names.

    Args:
        settings: nested dictionaries, one for each group; unknown names are kept.
        model: the class of these settings.
        source: what holds them, for the note and for errors.
        quiet: print no note: the settings were stored by an earlier version of this program, and
            no one has to correct them.

    Returns:
        The settings in their order.

    Raises:
        UserError: an old name is given together with the new one.
    """
    return _renamed(settings, model, source, quiet, prefix="")


def _renamed(
    settings: Mapping[str, Any], model: type[BaseModel], source: str, quiet: bool, prefix: str
) -> dict[str, Any]:
    names = old_names(model)
    current = {}
    for key, value in settings.items():
        name = names.get(key, key)
        if name != key:
            if name in settings:
                raise UserError(
                    f"{source}: {prefix}{key} is the old name of {prefix}{name}, and both are "
                    f"given: remove {prefix}{key}"
                )
            if not quiet:
                note_old_name(source, f"{prefix}{key}", f"{prefix}{name}")
        info = model.model_fields.get(name)
        group = group_of(info) if info is not None else None
        if group is not None and isinstance(value, Mapping):
            value = _renamed(value, group, source, quiet, f"{prefix}{name}.")
        current[name] = value
    return current


def note_old_name(source: str, old: str, new: str) -> None:
    """Prints one line on stderr that names the new key; in a distributed run process 0 does."""
    if os.environ.get("RANK", "0") == "0":
        print(f"note: {source}: {old} is now called {new}, please rename it", file=sys.stderr)
