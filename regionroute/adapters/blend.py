"""Blends of experts in words: ``0.6 pixel-art + 0.4 line-art``."""

import math
import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from regionroute.adapters.files.registry import ExpertRegistry
from regionroute.adapters.routers import FixedRouter, RouteContext
from regionroute.errors import UserError

_TERM = re.compile(
    r"(?P<weight>-?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?)(\s*[*×]\s*|\s+)(?P<style>\S.*)", re.IGNORECASE
)
_EXAMPLE = '"0.6 pixel-art + 0.4 line-art"'


def parse_blend(text: str, name_of: Callable[[str], str]) -> dict[str, float]:
    """Reads a style, or several with their weights.

    Weights are taken as they stand: they need not add up to 1, and one style may stand alone
    ("0.5 pixel-art" is half its expert).

    Args:
        text: a style's name or phrase, or weighted ones joined by "+".
        name_of: the name behind a name or phrase, such as `ExpertRegistry.name`; raises
            `UserError` for what is none.

    Returns:
        Weight by the style's name, in the order of the text; {name: 1.0} for a lone style.

    Raises:
        UserError: an unknown style (names the nearest), a missing or senseless weight, or a style
            named twice.
    """
    if not text.strip():
        raise UserError(f"style: nothing is named, give a style or a blend such as {_EXAMPLE}")
    terms = [term.strip() for term in text.split("+")]
    lone = len(terms) == 1 and not _TERM.fullmatch(terms[0])
    try:
        return {name_of(text): 1.0}  # also one with "+" or a number in its name
    except UserError:
        if lone:
            raise
    blend: dict[str, float] = {}
    for term in terms:
        match = _TERM.fullmatch(term)
        if not match:
            raise UserError(
                f'style: "{term}" in the blend "{text}" needs a weight and a style, '
                f"as in {_EXAMPLE}"
            )
        weight, name = float(match["weight"]), name_of(match["style"])
        if not (math.isfinite(weight) and weight > 0):
            raise UserError(f'style: the weight of "{name}" must be above 0, not {match["weight"]}')
        if name in blend:
            raise UserError(f'style: the blend "{text}" names "{name}" twice, add up its weights')
        blend[name] = weight
    return blend


def blend_weights(blend: Mapping[str, float], registry: ExpertRegistry) -> Tensor:
    """A blend as weights [E] fp32 of the registry's experts, for `FixedRouter`.

    Raises:
        UserError: a style that the registry does not have.
    """
    weights = torch.zeros(len(registry.experts))
    for style, weight in blend.items():
        weights[registry.index(style)] = weight
    return weights


def blend_route(
    blends: Sequence[Mapping[str, float] | None],
    registry: ExpertRegistry,
    device: torch.device | str = "cpu",
) -> RouteContext:
    """The route of a batch whose samples each use a blend of their own.

    Args:
        blends: one a sample, as `parse_blend` gives them; None: the bare base, without the expert
            for all as well.
        registry: of the loaded experts.
        device: the model's.

    Returns:
        A route by expert ids where every blend is a single style at weight 1, else by weights.

    Raises:
        UserError: a style that the registry does not have.
    """
    if all(blend is None or list(blend.values()) == [1.0] for blend in blends):
        ids = [-1 if blend is None else registry.index(next(iter(blend))) for blend in blends]
        if not registry.learned:
            return RouteContext(torch.tensor(ids, device=device))
    weights = torch.stack([blend_weights(blend or {}, registry) for blend in blends]).to(device)
    shared = torch.tensor([float(blend is not None) for blend in blends], device=device)
    return RouteContext(router=FixedRouter(weights, shared=shared))
