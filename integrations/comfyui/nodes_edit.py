"""The nodes that edit: by words, by a style image, within a given MASK."""

from __future__ import annotations

from typing import Any

import torch

from regionroute.config.choices import INSTANCES

from .api import CATEGORY, io
from .edits import edit_inputs, edit_outputs, edited, pipeline_options, run_edit
from .images import from_image, from_mask


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
            inputs=edit_inputs(
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
                    "instance", options=[*INSTANCES], default="all", advanced=True,
                    tooltip="which of several objects of a word (routed)",
                ),
            ),
            outputs=edit_outputs(),
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
        return edited(image, [run_edit(pipeline, image, pipeline_options(**settings), **call)])


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
            inputs=edit_inputs(
                io.Image.Input("style_image", tooltip="one for all objects, or one for each"),
                io.String.Input(
                    "objects", default="circle", multiline=True, tooltip="one object a line"
                ),
                io.Combo.Input("instance", options=[*INSTANCES], default="all", advanced=True),
            ),
            outputs=edit_outputs(),
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
        return edited(image, [run_edit(pipeline, image, pipeline_options(**settings), **call)])


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
            inputs=edit_inputs(
                io.Mask.Input("mask", tooltip="one for all images of a batch, or one for each"),
                io.String.Input("object", default="cat", tooltip="what the mask shows"),
                io.String.Input("style", default="starry-night", tooltip="a name or a blend"),
            ),
            outputs=edit_outputs(),
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
        options = pipeline_options(**settings)
        outs = [
            run_edit(pipeline, part, options, object=object, style=style, region_mask=masks[row])
            for row, part in enumerate(parts)
        ]
        return edited(image, outs)
