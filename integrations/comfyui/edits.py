"""What the nodes that edit share: inputs, outputs, and the call of the pipeline."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .api import Pipeline, io, step_callback
from .images import from_image, to_image, to_mask

SWITCH = {"default": None, "on": True, "off": False}
MOST_SEED = 2**53 - 1  # whole numbers up to here survive the browser


def edit_inputs(*own: Any) -> list[Any]:
    """Pipeline and image, the node's own inputs, and those that all edits share."""
    return [
        Pipeline.Input("pipeline"),
        io.Image.Input("image", tooltip="one image or a batch; transparency is kept"),
        *own,
        io.Int.Input(
            "seed", default=0, min=0, max=MOST_SEED, control_after_generate=True,
            tooltip="of the noise; the same for each image of a batch",
        ),
        io.Float.Input(
            "strength", default=1.0, min=0.0, max=1.0, step=0.01,
            tooltip="of the style inside the region (routed)",
        ),
        io.Int.Input(
            "steps", default=0, min=0, max=1000,
            tooltip="sampling steps; 0: the base's default",
        ),
        io.Float.Input(
            "guidance", default=-1.0, min=-1.0, max=30.0, step=0.1,
            tooltip="guidance scale; -1: the base's default", advanced=True,
        ),
        io.Combo.Input(
            "mode", options=["default", "routed", "plain"], default="default", advanced=True,
            tooltip="routed: the region map decides where the style acts; plain: the prompt alone",
        ),
        io.Combo.Input(
            "lock_background", options=[*SWITCH], default="default", advanced=True,
            tooltip="keep every pixel outside the region",
        ),
        io.Combo.Input(
            "refine_crop", options=[*SWITCH], default="default", advanced=True,
            tooltip="restyle small objects of large images once more in a crop around them",
        ),
        io.Combo.Input(
            "sparse", options=[*SWITCH], default="default", advanced=True,
            tooltip="after the first model call compute only the region in most steps; default: "
            "if routed with a locked background, from 4 steps and 512 px on. Keeps 6 GB for FLUX.1 "
            "at 1024 px in bfloat16: switch it off if other models need them",
        ),
        io.Combo.Input(
            "sparse_quality", options=["fast", "balanced", "high"], default="balanced",
            advanced=True, tooltip="how close a sparse edit is to one with sparse off",
        ),
        io.Int.Input(
            "batch_size", default=1, min=1, max=64, advanced=True,
            tooltip="images of a batch to edit at a time",
        ),
    ]  # fmt: skip


def edit_outputs() -> list[Any]:
    """The edits, their regions and their settings."""
    return [
        io.Image.Output("image"),
        io.Mask.Output("region", tooltip="where the image was restyled"),
        io.String.Output("settings", tooltip="what reproduces each edit, as JSON"),
    ]


def pipeline_options(
    *,
    seed: int = 0,
    strength: float = 1.0,
    steps: int = 0,
    guidance: float = -1.0,
    mode: str = "default",
    lock_background: str = "default",
    refine_crop: str = "default",
    sparse: str = "default",
    sparse_quality: str = "balanced",
    batch_size: int = 1,
    instance: str = "all",
) -> dict[str, Any]:
    """Arguments of the pipeline from the values of `edit_inputs`."""
    return {
        "strength": strength,
        "num_inference_steps": steps or None,
        "guidance_scale": None if guidance < 0 else guidance,
        "mode": None if mode == "default" else mode,
        "lock_background": SWITCH[lock_background],
        "refine_crop": SWITCH[refine_crop],
        "sparse": SWITCH[sparse],
        "sparse_quality": sparse_quality,
        "batch_size": batch_size,
        "seed": seed,
        "instance": instance,
    }


def run_edit(pipeline: Any, image: torch.Tensor, options: Mapping[str, Any], **call: Any) -> Any:
    """Edit a batch with ComfyUI's progress bar; all arguments are the pipeline's.

    Args:
        pipeline: a `RegionRoutePipeline`.
        image: IMAGE.
        options: see `pipeline_options`.
        call: objects, styles, masks and the like.

    Returns:
        An `EditOutput` with tensors; warnings are logged.
    """
    steps = options["num_inference_steps"] or pipeline.backbone.settings.steps
    batches = math.ceil(len(image) / options["batch_size"])
    out = pipeline(
        from_image(image),
        **options,
        **call,
        output_type="pt",
        callback_on_step_end=step_callback(steps * batches),
    )
    for warning in (text for one in out.metadata for text in one.get("warnings", ())):
        logging.getLogger("regionroute").warning(warning)
    return out


def edited(image: torch.Tensor, outs: Sequence[Any]) -> io.NodeOutput:
    """The outputs of the nodes from those of one or more calls of the pipeline."""
    edits = [edit for out in outs for edit in out.images]
    metadata = [one for out in outs for one in out.metadata]
    size = (image.shape[1], image.shape[2])
    masks = torch.cat([to_mask(out, size) for out in outs])
    return io.NodeOutput(to_image(edits), masks, json.dumps(metadata, indent=2))
