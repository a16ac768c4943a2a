"""``experts.json``: which experts a folder holds, what they are and what they fit."""

import difflib
from collections.abc import Sequence
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from regionroute.errors import UserError
from regionroute.io import read_json
from regionroute.manifest import StyleSpec

REGISTRY_FILE = "experts.json"
SCHEMA_VERSION = 1


class ExpertEntry(BaseModel):
    """One expert of a registry; `file` is relative to the registry's folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    style: str
    phrase: str | None = None
    file: str


class ExpertRegistry(BaseModel):
    """The contents of ``experts.json``; an expert's index is its place in `experts`."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    version: int = Field(SCHEMA_VERSION, validation_alias="schema", serialization_alias="schema")
    base: str
    fingerprint: str
    rank: int = Field(ge=1)
    alpha: float
    targets: str | list[str]
    experts: list[ExpertEntry] = Field(min_length=1)
    extra: dict[str, Any] = {}

    @property
    def styles(self) -> list[StyleSpec]:
        """The styles in the order of the experts."""
        return [StyleSpec(entry.style, entry.phrase) for entry in self.experts]

    def index(self, style: str) -> int:
        """The expert of a style, given by its name or by its phrase, in any case.

        Raises:
            UserError: an unknown style; names the nearest.
        """
        wanted = style.strip().casefold()
        for i, entry in enumerate(self.experts):
            if wanted in (entry.style.casefold(), (entry.phrase or entry.style).casefold()):
                return i
        known = [entry.style for entry in self.experts]
        near = difflib.get_close_matches(style, known, n=1, cutoff=0.0)[0]
        raise UserError(
            f'there is no expert for style "{style}", the nearest is "{near}" '
            f"(known: {', '.join(known)})"
        )

    def select(self, styles: Sequence[str] | None) -> "ExpertRegistry":
        """The registry cut to some styles, in the order given; None: all.

        Raises:
            UserError: an unknown style, or none at all.
        """
        if styles is None:
            return self
        if not styles:
            raise UserError("no styles were asked for, name at least one")
        chosen = [self.experts[self.index(style)] for style in dict.fromkeys(styles)]
        return self.model_copy(update={"experts": chosen})


def read_registry(folder: str | PathLike[str]) -> ExpertRegistry:
    """Reads ``experts.json``.

    Raises:
        UserError: it is missing, damaged, of a newer version, or points outside its folder.
    """
    path = Path(folder) / REGISTRY_FILE
    if not path.is_file():
        raise UserError(
            f"{folder}: no {REGISTRY_FILE} here, give the folder that training wrote its experts to"
        )
    values = read_json(path)
    version = values.get("schema") if isinstance(values, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise UserError(f"{path}: schema {version} is newer than this program, update it")
    try:
        registry = ExpertRegistry.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {where}: {first['msg']}, mend or export it again") from error
    for entry in registry.experts:
        file = PurePosixPath(entry.file)
        if file.is_absolute() or ".." in file.parts:
            raise UserError(f'{path}: the file "{entry.file}" must lie inside the experts\' folder')
    return registry
