"""The nodes that edit: by words, by a style image, within a given MASK."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .api import CATEGORY, Pipeline, io, step_callback
from .images import from_image, from_mask, to_image, to_mask

SWITCH = {"default": None, "on": True, "off": False}
INSTANCES = ["all", "largest", "leftmost", "rightmost", "topmost", "bottommost"]
MOST_SEED = 2**53 - 1  # whole numbers up to here survive the browser


def parse_rows(text: str) -> tuple[list[str], list[str]]:
    """Objects and styles of lines such as "dog: watercolour"; empty lines are skipped.

    Raises:
        UserError: a line without a colon, or without one of the two.
    """
    from regionroute.errors import UserError

    rows = [line.partition(":") for line in text.splitlines() if line.strip()]
    for words, colon, style in rows:
        if not (colon and words.strip() and style.strip()):
            raise UserError(
                f'edits: {words + colon + style!r}: write one "object: style" a line, such as '
                '"dog: watercolour"'
            )
    return [words.strip() for words, _, _ in rows], [style.strip() for _, _, style in rows]


def _inputs(*own: Any) -> list[Any]:
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
            "steps", default=0, min=0, max=1000, tooltip="sampling steps; 0: the base's default",
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
        io.Boolean.Input(
            "sparse", default=False, advanced=True,
            tooltip="after the first model call compute only the region in most steps (routed)",
        ),
        io.Int.Input(
            "batch_size", default=1, min=1, max=64, advanced=True,
            tooltip="images of a batch to edit at a time",
        ),
    ]  # fmt: skip


def _outputs() -> list[Any]:
    return [
        io.Image.Output("image"),
        io.Mask.Output("region", tooltip="where the image was restyled"),
        io.String.Output("settings", tooltip="what reproduces each edit, as JSON"),
    ]


def _options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the pipeline from the shared inputs; missing ones have their defaults."""
    get = settings.get
    guidance, mode = get("guidance", -1.0), get("mode", "default")
    return {
        "strength": get("strength", 1.0),
        "num_inference_steps": get("steps", 0) or None,
        "guidance_scale": None if guidance < 0 else guidance,
        "mode": None if mode == "default" else mode,
        "lock_background": SWITCH[get("lock_background", "default")],
        "refine_crop": SWITCH[get("refine_crop", "default")],
        "sparse": get("sparse", False),
        "batch_size": get("batch_size", 1),
        "seed": get("seed", 0),
        "instance": get("instance", "all"),
    }


def run_edit(pipeline: Any, image: torch.Tensor, options: Mapping[str, Any], **call: Any) -> Any:
    """Edit a batch with ComfyUI's progress bar; all arguments are the pipeline's.

    Args:
        pipeline: a `RegionRoutePipeline`.
        image: IMAGE.
        options: see `_options`.
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


def _edited(image: torch.Tensor, outs: Sequence[Any]) -> io.NodeOutput:
    """The outputs of the nodes from those of one or more calls of the pipeline."""
    edits = [edit for out in outs for edit in out.images]
    metadata = [one for out in outs for one in out.metadata]
    size = (image.shape[1], image.shape[2])
    masks = torch.cat([to_mask(out, size) for out in outs])
    return io.NodeOutput(to_image(edits), masks, json.dumps(metadata, indent=2))


class Edit(io.ComfyNode):
    """Edits by words: one "object: style" a line."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Pipeline, IMAGE and rows → IMAGE, MASK, settings."""
        return io.Schema(
            node_id="RegionRouteEdit",
            display_name="RegionRoute: Edit",
            category=CATEGORY,
            description="Restyle the objects you name, each in its own style, and keep the rest.",
            inputs=_inputs(
                io.String.Input(
                    "edits", default="cat: starry-night", multiline=True,
                    tooltip='one "object: style" a line; a style is a name or a blend such as '
                    '"0.6 woodcut + 0.4 neon"',
                ),
                io.String.Input(
                    "prompt", default="", advanced=True,
                    tooltip="own wording, with the object in [brackets] and the style in {braces}",
                ),
                io.Combo.Input(
                    "instance", options=INSTANCES, default="all", advanced=True,
                    tooltip="which of several objects of a word (routed)",
                ),
            ),
            outputs=_outputs(),
        )  # fmt: skip

    @classmethod
    def execute(
        cls, pipeline: Any, image: torch.Tensor, edits: str, prompt: str = "", **settings: Any
    ) -> io.NodeOutput:
        """Edit each image of the batch.

        Raises:
            UserError: rows, style or settings that cannot be used.
        """
        objects, styles = parse_rows(edits)
        call = {"object": objects or "", "style": styles or "", "prompt": prompt.strip() or None}
        return _edited(image, [run_edit(pipeline, image, _options(settings), **call)])


class EditByImage(io.ComfyNode):
    """Edits in the style of an image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Pipeline, IMAGE, style IMAGE and objects → IMAGE, MASK, settings."""
        return io.Schema(
            node_id="RegionRouteEditByImage",
            display_name="RegionRoute: Edit by Style Image",
            category=CATEGORY,
            description="Restyle objects in the style of an image; for experts that were trained "
            "with experts.router=similarity, such as those of the base nano.",
            inputs=_inputs(
                io.Image.Input("style_image", tooltip="one for all objects, or one for each"),
                io.String.Input(
                    "objects", default="circle", multiline=True, tooltip="one object a line"
                ),
                io.Combo.Input("instance", options=INSTANCES, default="all", advanced=True),
            ),
            outputs=_outputs(),
        )

    @classmethod
    def execute(
        cls,
        pipeline: Any,
        image: torch.Tensor,
        style_image: torch.Tensor,
        objects: str,
        **settings: Any,
    ) -> io.NodeOutput:
        """Edit each image of the batch.

        Raises:
            UserError: no object, experts that are chosen by name, or settings that cannot be used.
        """
        words = [line.strip() for line in objects.splitlines() if line.strip()]
        references = list(from_image(style_image))
        if len(references) == 1:
            references *= max(1, len(words))
        call = {"object": words or "", "style_image": references}
        return _edited(image, [run_edit(pipeline, image, _options(settings), **call)])


class EditMask(io.ComfyNode):
    """Edits within a given MASK."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Pipeline, IMAGE, MASK, object and style → IMAGE, MASK, settings."""
        return io.Schema(
            node_id="RegionRouteEditMask",
            display_name="RegionRoute: Edit in Mask",
            category=CATEGORY,
            description="Restyle what a MASK selects, in place of the predicted region.",
            inputs=_inputs(
                io.Mask.Input("mask", tooltip="one for all images of a batch, or one for each"),
                io.String.Input("object", default="cat", tooltip="what the mask shows"),
                io.String.Input("style", default="starry-night", tooltip="a name or a blend"),
            ),
            outputs=_outputs(),
        )

    @classmethod
    def execute(
        cls,
        pipeline: Any,
        image: torch.Tensor,
        mask: torch.Tensor,
        object: str,
        style: str,
        **settings: Any,
    ) -> io.NodeOutput:
        """Edit each image of the batch within its mask.

        Raises:
            UserError: an empty mask, another number of masks, or settings that cannot be used.
        """
        masks = from_mask(mask, len(image), (image.shape[1], image.shape[2]))
        one_mask = mask.ndim == 2 or len(mask) == 1
        parts = [image] if one_mask else list(image.split(1))
        options = _options(settings)
        outs = [
            run_edit(pipeline, part, options, object=object, style=style, region_mask=masks[row])
            for row, part in enumerate(parts)
        ]
        return _edited(image, outs)
