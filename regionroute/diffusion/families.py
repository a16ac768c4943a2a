"""The families of bases by the names in their files, each imported when a base of it is used."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from torch import nn

from regionroute.diffusion.family import Family, Grid, Parts, Projected, Text

__all__ = [
    "EXAMPLES",
    "PIPELINES",
    "Family",
    "Grid",
    "Parts",
    "Projected",
    "Text",
    "every_family",
    "family_of",
    "family_of_config",
    "find_transformer",
    "named",
]


class _Entry(NamedTuple):
    """What is known of a family before it is imported.

    Attributes:
        module: in this package; its ``FAMILY`` is the family.
        pipeline: see `Family`.
        transformer: name of its class.
        example: see `Family`.
    """

    module: str
    pipeline: str
    transformer: str
    example: str


_ENTRIES = (
    _Entry(
        "flux_kontext",
        "FluxKontextPipeline",
        "FluxTransformer2DModel",
        "black-forest-labs/FLUX.1-Kontext-dev",
    ),
    _Entry(
        "flux2_klein",
        "Flux2KleinPipeline",
        "Flux2Transformer2DModel",
        "black-forest-labs/FLUX.2-klein-base-4B",
    ),
)
PIPELINES = tuple(entry.pipeline for entry in _ENTRIES)
EXAMPLES = tuple(entry.example for entry in _ENTRIES)  # hub ids, for messages
_BY_TRANSFORMER = {entry.transformer: entry for entry in _ENTRIES}


@cache
def _load(entry: _Entry) -> Family:
    family: Family = importlib.import_module(f"regionroute.diffusion.{entry.module}").FAMILY
    return family


def every_family() -> Iterator[Family]:
    """All families, the default one (FLUX.1-Kontext) first, imported one by one."""
    return map(_load, _ENTRIES)


def named(pipeline: object) -> Family | None:
    """The family whose pipeline has this name in ``model_index.json``."""
    return next((_load(entry) for entry in _ENTRIES if entry.pipeline == pipeline), None)


def family_of_config(settings: Mapping[str, Any]) -> Family:
    """The family of a transformer's ``config.json``; Kontext where it names no class.

    Raises:
        KeyError: a class of no family.
    """
    return _load(_BY_TRANSFORMER[settings.get("_class_name", _ENTRIES[0].transformer)])


def find_transformer(model: nn.Module) -> tuple[nn.Module, Family]:
    """The transformer that a model is or contains (DDP, DeepSpeed, own wrappers), and its family.

    Raises:
        ValueError: there is none of a known class.
    """
    for module in model.modules():
        # By name first, so that a family that is not in use need not be imported.
        for kind in type(module).__mro__:
            entry = _BY_TRANSFORMER.get(kind.__name__)
            if entry is not None and kind is _load(entry).transformer:
                return module, _load(entry)
    raise ValueError(f"there is no {' or '.join(_BY_TRANSFORMER)} in {type(model).__name__}")


def family_of(model: nn.Module) -> Family:
    """The family of a transformer, which may be wrapped.

    Raises:
        ValueError: it is of none.
    """
    return find_transformer(model)[1]
