"""The metadata of an edit: all settings that reproduce it, and warnings."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import io
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from regionroute.data.image_files import max_pixels
from regionroute.data.images import from_pil, to_pil
from regionroute.editing.refine_crop import Crop
from regionroute.editing.request import EditOptions, EditPlan
from regionroute.editing.sampling_job import SamplingResult
from regionroute.errors import UserError
from regionroute.hub_names import used_name
from regionroute.models.backbone import Backbone
from regionroute.models.embedded import NAMES, nano_folder
from regionroute.settings_files import versions


def batch_metadata(
    backbone: Backbone,
    experts: str | PathLike[str] | None,
    options: EditOptions,
    size: tuple[int, int],
) -> dict[str, Any]:
    """Metadata that all images of a batch share, JSON-able.

    Args:
        backbone: the base.
        experts: their folder.
        options: fully resolved.
        size: (height, width) of the images.
    """
    return dataclasses.asdict(options) | {
        "base": used_name(backbone.name, backbone.revision),
        "experts": None if experts is None else _portable(experts),
        "size": [*size],
        "model_size": [*backbone.fit_size(*size)],
    }


def image_metadata(
    plans: Sequence[EditPlan],
    sampled: SamplingResult,
    row: int,
    confidence: float,
    crop: Crop | None = None,
) -> dict[str, Any]:
    """Metadata of one image, JSON-able.

    Args:
        plans: of its (object, style) pairs; values of a single pair are not put into a list.
        sampled: the result of the batch.
        row: the image's index in the batch.
        confidence: concentration of attention below which an object counts as hardly found.
        crop: the crop that was refined, if any.
    """
    one = len(plans) == 1
    facts: dict[str, Any] = {
        "prompt": plans[0].prompt.text if one else [plan.prompt.text for plan in plans],
        "object": plans[0].object if one else [plan.object for plan in plans],
        "style": plans[0].style.name if one else [plan.style.name for plan in plans],
        "seed": plans[0].seed,
        "versions": versions(),
    }
    nearest = [plan.style.nearest for plan in plans if plan.style.nearest]
    if nearest:
        facts["nearest_trained_style"] = [[name, round(cosine, 3)] for name, cosine in nearest]
    if crop is not None:
        facts["crop"] = [*crop]
    if sampled.interrupted:
        facts["interrupted"] = True
    if sampled.instances is not None:
        facts["instances_found"] = sampled.instances[row].tolist()
    if sampled.concentration is not None:
        values = sampled.concentration[row].tolist()
        facts["attention_on_region"] = [float(f"{value:.3g}") for value in values]
        assert sampled.absent is not None
        absent = sampled.absent[row].tolist()
        facts["warnings"] = [
            _warning(plan.object, value, confidence, missing)
            for plan, value, missing in zip(plans, values, absent, strict=True)
            if missing or value < confidence
        ]
        if sampled.presence is not None:
            facts["presence"] = [round(value, 3) for value in sampled.presence[row].tolist()]
        if any(absent):
            facts["left_unchanged"] = [
                plan.object for plan, missing in zip(plans, absent, strict=True) if missing
            ]
    return facts


def _portable(experts: str | PathLike[str]) -> str:
    """The folder, or ``nano-photos/experts`` for one in the package, wherever that is installed."""
    for name in NAMES:
        if Path(experts).parent == nano_folder(name):
            return f"{name}/{Path(experts).name}"
    return str(experts)


def mask_to_text(mask: Tensor) -> str:
    """A mask [H,W] in [0,1] as a grey PNG of 8 bits in base64, for JSON."""
    buffer = io.BytesIO()
    to_pil(mask[None]).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def mask_from_text(text: str) -> Tensor:
    """The mask [H,W] in [0,1] of `mask_to_text`.

    Raises:
        UserError: it is damaged, no grey PNG, or too large.
    """
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=("PNG",)) as png:
            if png.mode != "L" or png.width * png.height > max_pixels():
                raise ValueError("not a grey image of a possible size")
            return from_pil(png)[0]
    # Pillow raises OSError, SyntaxError, ValueError and its own classes on damaged files.
    except (OSError, SyntaxError, ValueError, binascii.Error, Image.DecompressionBombError):
        raise UserError(
            "region_masks: a stored region is damaged; draw it again, or leave it out"
        ) from None


def _warning(phrase: str, value: float, confidence: float, absent: bool) -> str:
    if absent:
        return (
            f'"{phrase}" was not found in the image, so it was left unchanged; use force '
            "(--force) to edit all the same"
        )
    return (
        f'"{phrase}" was hardly found in the image: the attention on its region is '
        f"{value:.2g} times the average, {confidence:.2g} or more is usual"
    )
