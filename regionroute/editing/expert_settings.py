"""Settings of experts for editing, stored under ``extra`` in ``experts.json``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from os import PathLike
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from regionroute.config.aliases import with_current_names
from regionroute.config.run import RoutingConfig
from regionroute.config.sites import MAP_KEY, MapChoice, parse_sites
from regionroute.errors import UserError
from regionroute.files import read_json
from regionroute.models.source import BaseSettings

Model = TypeVar("Model", bound=BaseModel)


def trained_sizes(
    settings: BaseSettings, extra: Mapping[str, Any], folder: str | PathLike[str]
) -> BaseSettings:
    """The base's settings with the text length and image size the experts were trained at.

    Flux attends to padding and to absolute positions, so experts depend on both.

    Raises:
        UserError: a size out of range.
    """
    changes: dict[str, Any] = {}
    for key, limit in (("max_text_length", 512), ("resolution", 8192)):
        value = extra.get(key, getattr(settings, key))
        if type(value) is not int or not 1 <= value <= limit:
            raise UserError(f"{folder}/experts.json: {key} must be 1 to {limit}, got {value!r}")
        changes[key] = value
    return dataclasses.replace(settings, **changes)


def stored_routing(extra: Mapping[str, Any], folder: str | PathLike[str]) -> RoutingConfig:
    """The form of the gates, as stored; else the defaults.

    Training always stores them. Experts without (imported LoRAs) get the object prompt, as in
    plain edits.

    Args:
        extra: of ``experts.json``.
        folder: of the experts, named in errors.

    Raises:
        UserError: the settings are broken.
    """
    stored = extra.get("routing", {"prompt": "object"})
    return _validated(RoutingConfig, stored, "routing.", f"{folder}/experts.json")


def stored_choice(extra: Mapping[str, Any], folder: str | PathLike[str]) -> MapChoice:
    """The attention sites: as `regionroute calibrate` chose, else as supervised in training.

    Raises:
        UserError: the choice is broken.
    """
    if MAP_KEY not in extra:
        return supervised_choice(extra, folder)
    file = f"{folder}/experts.json"
    return _validated(MapChoice, extra[MAP_KEY], f"{MAP_KEY}.", file, ", calibrate again")


def read_choice(text: str) -> MapChoice:
    """Read a choice: a file of `regionroute calibrate`, or attention sites in one text.

    Raises:
        UserError: the file is missing or broken, or a site is not of the form.
    """
    if not text.endswith(".json"):
        layers = [str(site) for site in parse_sites(text)]
        return MapChoice(layers=layers, combine="normalised")
    values = read_json(text)
    if not isinstance(values, dict) or MAP_KEY not in values:
        raise UserError(f'{text}: no "{MAP_KEY}" in it, give a file of `regionroute calibrate`')
    return _validated(MapChoice, values[MAP_KEY], f"{MAP_KEY}.", text, ", calibrate again")


def supervised_choice(extra: Mapping[str, Any], folder: str | PathLike[str]) -> MapChoice:
    """The blocks, queries and norm of the training's attention losses.

    Raises:
        UserError: one of them is broken.
    """
    keys = ("layers", "queries", "norm")
    found = {key: extra[f"map_{key}"] for key in keys if f"map_{key}" in extra}
    return _validated(MapChoice, found, "map_", f"{folder}/experts.json")


def _validated(model: type[Model], values: Any, prefix: str, file: str, remedy: str = "") -> Model:
    if isinstance(values, Mapping):
        values = with_current_names(values, model, file, quiet=True)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = (prefix + ".".join(map(str, first["loc"]))).removesuffix(".")
        said = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{file}: {where}: {said}{remedy}") from error
