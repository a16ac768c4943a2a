"""``experts.json``: which experts a folder holds, what they are and what they fit."""

import difflib
from collections.abc import Mapping
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from regionroute.adapters.routers import Router, SimilarityRouter, StyleIdRouter
from regionroute.data.manifest import StyleSpec
from regionroute.errors import UserError
from regionroute.files import read_json

REGISTRY_FILE = "experts.json"
ROUTER_FILE = "router.safetensors"
SCHEMA_VERSION = 2  # 2: router


class ExpertEntry(BaseModel):
    """One expert of a registry; `file` is relative to the registry's folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    style: str
    phrase: str | None = None
    file: str


class RouterEntry(BaseModel):
    """A learned router, an expert for all samples, or both; their weights are in `file`.

    Attributes:
        kind: "style": by the style's name; "similarity": by its embedding, see
            `SimilarityRouter`, whose arguments the rest are.
        shared_rank: rank of the expert for all samples, 0: none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["style", "similarity"] = "style"
    file: str = ROUTER_FILE
    shared_rank: int = Field(0, ge=0)
    style_dim: int | None = Field(None, ge=1)
    top_k: int | None = Field(None, ge=1)
    normalize: bool = True
    compat: Literal["fixed", "released"] = "fixed"

    @model_validator(mode="after")
    def _complete(self) -> "RouterEntry":
        sizes = (self.style_dim, self.top_k)
        if (None in sizes) == (self.kind == "similarity") or sizes.count(None) == 1:
            raise ValueError("routing by similarity, and no other, has style_dim and top_k")
        return self

    def make_router(self, num_experts: int) -> Router:
        """A router of one layer, its gate not yet loaded."""
        if self.style_dim is None or self.top_k is None:
            return StyleIdRouter(num_experts)
        return SimilarityRouter(
            self.style_dim, num_experts, self.top_k, normalize=self.normalize, compat=self.compat
        )


class ExpertRegistry(BaseModel):
    """The contents of ``experts.json``; an expert's index is its place in `experts`."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    version: int = Field(SCHEMA_VERSION, validation_alias="schema", serialization_alias="schema")
    base: str
    fingerprint: str
    rank: int = Field(ge=1)
    alpha: float = Field(allow_inf_nan=False)
    targets: str | list[str]
    experts: list[ExpertEntry] = Field(min_length=1)
    router: RouterEntry | None = None
    extra: dict[str, Any] = {}

    @model_validator(mode="after")
    def _enough_experts(self) -> "ExpertRegistry":
        wanted = self.router.top_k if self.router else None
        if wanted and wanted > len(self.experts):
            raise ValueError(f"top_k is {wanted}, there are {len(self.experts)} experts")
        return self

    @model_validator(mode="after")
    def _distinct_styles(self) -> "ExpertRegistry":
        styles = [entry.style.casefold() for entry in self.experts]
        twice = next((style for style in styles if styles.count(style) > 1), None)
        if twice is not None:
            raise ValueError(f'the style "{twice}" has more than one entry')
        return self

    @property
    def learned(self) -> bool:
        """Whether the experts are chosen by a style embedding and not by their names."""
        return self.router is not None and self.router.kind == "similarity"

    @property
    def shared_rank(self) -> int:
        """Rank of the expert for all samples, 0: none."""
        return self.router.shared_rank if self.router else 0

    @property
    def styles(self) -> list[StyleSpec]:
        """The styles in the order of the experts."""
        return [StyleSpec(entry.style, entry.phrase) for entry in self.experts]

    @property
    def style_names(self) -> list[str]:
        """What an edit may name: the experts' styles, or those that are known by example."""
        return self.trained_styles if self.learned else [entry.style for entry in self.experts]

    @property
    def trained_styles(self) -> list[str]:
        """The styles of the training, by `extra`, where experts are chosen by example.

        Raises:
            UserError: it is something else than a list of texts.
        """
        styles = self.extra.get("styles") or []
        if not (isinstance(styles, list | tuple) and all(isinstance(x, str) for x in styles)):
            raise UserError(f"{REGISTRY_FILE}: extra.styles must list texts, fix or remove it")
        return list(styles)

    def facts(self, key: str) -> Mapping[str, Any]:
        """An object of `extra`, empty where there is none.

        Raises:
            UserError: it is something else.
        """
        value = self.extra.get(key)
        if not isinstance(value, Mapping | None):
            raise UserError(
                f"{REGISTRY_FILE}: extra.{key} must be an object, not {str(value)[:60]!r}: "
                "fix or remove it"
            )
        return value or {}

    def index(self, style: str) -> int:
        """The expert of a style, given by its name or, second, by its phrase, in any case.

        Raises:
            UserError: an unknown style; names those there are.
        """
        wanted = style.strip().casefold()
        known = [entry.style for entry in self.experts]
        # All names before any phrase: one expert's phrase may be another one's name.
        for texts in (known, [style.words for style in self.styles]):
            for i, text in enumerate(texts):
                if text.casefold() == wanted:
                    return i
        names = {name.casefold(): name for name in known}
        near = difflib.get_close_matches(wanted, names, n=1)
        hint = f', the nearest is "{names[near[0]]}"' if near else ""
        raise UserError(
            f'there is no expert for style "{style}"{hint} (known: {", ".join(known)}); '
            "name the folder of experts that have it (--experts), or make one with "
            "`regionroute teach`"
        )

    def name(self, style: str) -> str:
        """A style's name, given by its name or by its phrase, in any case.

        Raises:
            UserError: an unknown style; names those there are.
        """
        return self.experts[self.index(style)].style


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
        where = ".".join(str(part) for part in first["loc"])  # empty: the object as a whole
        said = first["msg"].removeprefix("Value error, ")
        place = f"{path}: {where}" if where else path
        raise UserError(f"{place}: {said}, fix or export it again") from error
    files = [entry.file for entry in registry.experts]
    for name in [*files, registry.router.file] if registry.router else files:
        file = PurePosixPath(name)
        if file.is_absolute() or ".." in file.parts:
            raise UserError(f'{path}: the file "{name}" must lie inside the experts\' folder')
    return registry
