"""The kinds of bases there are, and which of them a model is of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from regionroute.diffusion.family import Family, Grid, Parts, Projected, Text
from regionroute.diffusion.flux2_klein import Klein
from regionroute.diffusion.flux_kontext import Kontext

KONTEXT, KLEIN = Kontext(), Klein()
FAMILIES: tuple[Family, ...] = (KONTEXT, KLEIN)

__all__ = [
    "FAMILIES",
    "KLEIN",
    "KONTEXT",
    "Family",
    "Grid",
    "Parts",
    "Projected",
    "Text",
    "family_of",
    "family_of_config",
    "find_transformer",
    "named",
]


def named(pipeline: object) -> Family | None:
    """The family whose pipeline has this name in ``model_index.json``."""
    return next((family for family in FAMILIES if family.pipeline == pipeline), None)


def family_of_config(settings: Mapping[str, Any]) -> Family:
    """The family of a transformer's ``config.json``; Kontext where it names no class."""
    kind = settings.get("_class_name", KONTEXT.transformer.__name__)
    return next(family for family in FAMILIES if family.transformer.__name__ == kind)


def find_transformer(model: Any) -> tuple[nn.Module, Family]:
    """The transformer that a model is or contains (DDP, DeepSpeed, own wrappers), and its family.

    Raises:
        ValueError: there is none of a known class.
    """
    for module in model.modules():
        for family in FAMILIES:
            if isinstance(module, family.transformer):
                return module, family
    known = " or ".join(family.transformer.__name__ for family in FAMILIES)
    raise ValueError(f"there is no {known} in {type(model).__name__}")


def family_of(model: Any) -> Family:
    """The family of a transformer, which may be wrapped.

    Raises:
        ValueError: it is of none.
    """
    return find_transformer(model)[1]
