"""What is written down about an edit: enough to make it again, and what to be warned of."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from importlib.metadata import version
from os import PathLike
from typing import Any

from regionroute.editing.refine_crop import Window
from regionroute.editing.request import EditOptions, EditPlan
from regionroute.editing.sampler import Sampled
from regionroute.models.loading import Backbone


def common(
    backbone: Backbone,
    experts: str | PathLike[str] | None,
    options: EditOptions,
    size: tuple[int, int],
) -> dict[str, Any]:
    """Facts of all pictures of a batch, JSON-able.

    Args:
        backbone: the base.
        experts: their folder.
        options: how it was edited.
        size: (height, width) of the pictures.
    """
    return dataclasses.asdict(options) | {
        "base": backbone.name,
        "experts": None if experts is None else str(experts),
        "size": [*size],
        "model_size": [*backbone.fit_size(*size)],
    }


def describe(
    plans: Sequence[EditPlan],
    sampled: Sampled,
    row: int,
    confidence: float,
    window: Window | None = None,
) -> dict[str, Any]:
    """Facts of one picture, JSON-able.

    Args:
        plans: its (object, style) pairs; facts of a lone one are told without a list.
        sampled: the batch's result.
        row: the picture's place in the batch.
        confidence: attention on a region below which its object counts as hardly found.
        window: where a second look was taken, if one was.
    """
    one = len(plans) == 1
    facts: dict[str, Any] = {
        "prompt": plans[0].prompt.text if one else [plan.prompt.text for plan in plans],
        "object": plans[0].object if one else [plan.object for plan in plans],
        "style": plans[0].look.name if one else [plan.look.name for plan in plans],
        "seed": plans[0].seed,
        "versions": {name: version(name) for name in ("regionroute", "torch", "diffusers")},
    }
    alike = [plan.look.nearest for plan in plans if plan.look.nearest]
    if alike:
        facts["nearest_trained_style"] = [[name, round(cosine, 3)] for name, cosine in alike]
    if window is not None:
        facts["window"] = [*window]
    if sampled.instances is not None:
        facts["instances_found"] = sampled.instances[row].tolist()
    if sampled.level is not None:
        level = sampled.level[row].tolist()
        facts["attention_on_region"] = [float(f"{value:.3g}") for value in level]
        facts["warnings"] = [
            f'"{plan.object}" was hardly found in the picture: its attention is only '
            f"{value:.2g} times that of an even spread"
            for plan, value in zip(plans, level, strict=True)
            if value < confidence
        ]
    return facts
