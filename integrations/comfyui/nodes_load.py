"""The node that loads a base and its experts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .api import CATEGORY, Pipeline, io, pick_device

if TYPE_CHECKING:
    from regionroute.config.choices import Quantize


class Load(io.ComfyNode):
    """Loads a `RegionRoutePipeline`; ComfyUI keeps it as long as the inputs stay the same."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Base, experts and how they are stored → pipeline, and the names of its styles."""
        return io.Schema(
            node_id="RegionRouteLoad",
            display_name="RegionRoute: Load",
            category=CATEGORY,
            description="Load a base and its style experts.",
            inputs=[
                io.String.Input(
                    "base", default="nano-photos",
                    tooltip="nano-photos, nano, a folder in diffusers' layout, or a hub id such as "
                    "black-forest-labs/FLUX.1-Kontext-dev",
                ),
                io.String.Input(
                    "experts", default="auto",
                    tooltip="auto: those that come with the base; by_example: those for style "
                    "images; none: the base alone, in any style; or a folder with experts.json",
                ),
                io.Combo.Input(
                    "dtype", options=["float32", "bfloat16", "float16"], default="float32",
                    tooltip="of the networks; bfloat16 for FLUX on a GPU",
                ),
                io.Combo.Input(
                    "quantize", options=["none", "nf4", "fp8"], default="none",
                    tooltip="store the transformer in 4 bits (nf4) or 8 bits (fp8)",
                ),
                io.String.Input(
                    "device", default="auto",
                    tooltip="auto: as ComfyUI; or cpu, cuda, cuda:1, ...", advanced=True,
                ),
                io.Boolean.Input(
                    "offload", default=False, advanced=True,
                    tooltip="keep the networks in main memory, move each to the device only "
                    "while it computes",
                ),
                io.String.Input(
                    "revision", default="", advanced=True,
                    tooltip="branch, tag or commit of a hub id; empty: its main branch",
                ),
            ],
            outputs=[
                Pipeline.Output("pipeline"),
                io.String.Output("styles", tooltip="the experts' styles, one a line"),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, experts: str, **_: Any) -> str:
        """Load again when a folder of experts was written again."""
        from regionroute.adapters.files.registry import REGISTRY_FILE
        from regionroute.files import file_hash

        registry = Path(experts.strip()) / REGISTRY_FILE
        return file_hash(registry) if registry.is_file() else ""

    @classmethod
    def execute(
        cls,
        base: str,
        experts: str,
        dtype: str,
        quantize: Quantize | Literal["none"],
        device: str = "auto",
        offload: bool = False,
        revision: str = "",
    ) -> io.NodeOutput:
        """Load the networks.

        Raises:
            UserError: base, experts or device cannot be used.
        """
        import torch

        from regionroute import RegionRoutePipeline

        target = pick_device(device.strip() or "auto")
        pipeline = RegionRoutePipeline.from_pretrained(
            base.strip() or None,
            experts=None if experts.strip() == "none" else experts.strip() or "auto",
            torch_dtype=getattr(torch, dtype),
            quantize=None if quantize == "none" else quantize,
            device="cpu" if offload else target,
            revision=revision.strip() or None,
        )
        if offload:
            pipeline.enable_model_cpu_offload(target)
        return io.NodeOutput(pipeline, "\n".join(pipeline.styles))
