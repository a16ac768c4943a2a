"""The node that gives ComfyUI's own FLUX an expert, and the region of an object as MASK."""

from __future__ import annotations

from typing import Any

import torch

from .api import CATEGORY, Pipeline, add_lora, io
from .edits import run_edit
from .images import to_mask


class ExpertLoRA(io.ComfyNode):
    """An expert as an ordinary LoRA for ComfyUI's MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """MODEL, pipeline, IMAGE, object and style → MODEL, MASK, prompt."""
        return io.Schema(
            node_id="RegionRouteExpertLoRA",
            display_name="RegionRoute: Expert as LoRA",
            category=CATEGORY,
            description="Give ComfyUI's own FLUX model a style expert as an ordinary LoRA, and "
            "the region of an object as a MASK.",
            inputs=[
                io.Model.Input("model", tooltip="of the base that the experts were trained on"),
                Pipeline.Input("pipeline", tooltip="finds the object; nano-photos will do"),
                io.Image.Input("image"),
                io.String.Input("object", default="cat"),
                io.String.Input("style", default="", tooltip="an expert's name, or a blend"),
                io.String.Input(
                    "experts", default="",
                    tooltip="folder with experts.json; empty: the experts of the pipeline",
                ),
                io.Float.Input("strength_model", default=1.0, min=-10.0, max=10.0, step=0.01),
                io.String.Input(
                    "map_style", default="", advanced=True,
                    tooltip="style word by which the pipeline finds the region; empty: the style "
                    "itself, or the pipeline's first style if it does not know that",
                ),
                io.Int.Input("seed", default=0, min=0, max=2**53 - 1, advanced=True),
            ],
            outputs=[
                io.Model.Output("model"),
                io.Mask.Output("region", tooltip="where the object is"),
                io.String.Output("prompt", tooltip="that the expert was trained with"),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model: Any,
        pipeline: Any,
        image: torch.Tensor,
        object: str,
        style: str,
        experts: str = "",
        strength_model: float = 1.0,
        map_style: str = "",
        seed: int = 0,
    ) -> io.NodeOutput:
        """Patch the model and find the region.

        Raises:
            UserError: no experts, an unknown style, or experts for another model.
        """
        from regionroute.adapters import parse_blend, read_registry
        from regionroute.adapters.files.formats import read_blend, to_original
        from regionroute.data.prompts import build_prompt, object_words
        from regionroute.editing.styles import Styles
        from regionroute.errors import UserError

        folder = experts.strip() or pipeline.editor.experts_dir
        if folder is None:
            raise UserError("experts: the pipeline has none, name a folder with experts.json")
        registry = read_registry(folder)
        blend = parse_blend(style, registry.name)
        lora = to_original(read_blend(folder, blend))
        patched = add_lora(model, lora, strength_model, f"{folder}: {style}")
        words = Styles(registry, folder).resolve(style).words
        prompt = build_prompt([(object_words(object), words)]).text
        map_style = map_style.strip() or _known_style(pipeline, style)
        # The region is that of the first model call: one step is enough.
        out = run_edit(
            pipeline, image, {"num_inference_steps": 1, "batch_size": 1}, seed=seed, mode="routed",
            object=object, style=map_style, refine_crop=False,
        )  # fmt: skip
        region = to_mask(out, (image.shape[1], image.shape[2]))
        return io.NodeOutput(patched, region, prompt)


def _known_style(pipeline: Any, style: str) -> str:
    """The style, or the pipeline's first one if its experts do not know it."""
    from regionroute.errors import UserError

    try:
        pipeline.editor.styles.resolve(style)
    except UserError:
        return str(pipeline.styles[0])
    return style
