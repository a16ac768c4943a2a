"""The node that scores an edit by its pixels."""

from __future__ import annotations

from typing import Any

import torch

from .api import CATEGORY, io
from .images import from_image, from_mask


class Score(io.ComfyNode):
    """Scores edits against their sources and, if there are some, targets."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Source, edit, MASK and target → report, and three numbers."""
        return io.Schema(
            node_id="RegionRouteScore",
            display_name="RegionRoute: Score",
            category=CATEGORY,
            description="Measure how much of the object changed and what changed outside of it.",
            inputs=[
                io.Image.Input("source"),
                io.Image.Input("edited"),
                io.Mask.Input("mask", tooltip="the object: from 0.5 on"),
                io.Image.Input(
                    "target", optional=True, tooltip="the edit that was wanted, if there is one"
                ),
            ],
            outputs=[
                io.String.Output("report", tooltip="all metrics, means over the batch"),
                io.Float.Output("coverage", tooltip="share of the object that changed"),
                io.Float.Output("leak", tooltip="share of the background that changed"),
                io.Float.Output("background_error", tooltip="mean squared error outside"),
            ],
        )

    @classmethod
    def execute(
        cls,
        source: torch.Tensor,
        edited: torch.Tensor,
        mask: torch.Tensor,
        target: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        """Score a batch; transparency counts as white.

        Raises:
            UserError: images of different sizes, or an empty mask.
        """
        from eval.metrics import CATALOGUE
        from eval.pixels import score_pixels

        content, size = _rgb(source), (source.shape[1], source.shape[2])
        inside = from_mask(mask, len(source), size)[:, None]
        scores = score_pixels(
            content, _rgb(edited), inside, None if target is None else _rgb(target)
        )
        means = {name: float(values.nanmean()) for name, values in scores.items()}
        width = max(len(CATALOGUE[name].label) for name in means)
        report = [
            f"{CATALOGUE[name].label:{width}} {value:.4f} {CATALOGUE[name].arrow}"
            for name, value in means.items()
        ]
        numbers = (means[name] for name in ("coverage", "leak", "mse_bg"))
        return io.NodeOutput("\n".join(report), *numbers)


def _rgb(image: torch.Tensor) -> Any:
    from regionroute.editing.inputs import to_tensors

    return torch.stack(to_tensors(from_image(image), "image"))
