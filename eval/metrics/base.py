"""What a metric gets and what it is: the batch, the description, the function.

Shape legend: B batch, S regions of a sample, H W pixels, h w cells of an attention map's grid.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class EvalBatch:
    """Images of one size and everything the metrics may ask about them.

    Attributes:
        ids: B sample ids.
        content: the unedited images [B,3,H,W] in [0,1].
        output: the edited images [B,3,H,W] in [0,1].
        target: the exact or pseudo targets [B,3,H,W] in [0,1].
        mask: union of each sample's regions [B,1,H,W] in {0,1}.
        region_masks: for each sample its regions one by one, [S,1,H,W] in {0,1}.
        styles: for each sample S style phrases, aligned with `region_masks`.
        labels: for each sample S object words, aligned with `region_masks`.
        region_maps: for each sample its attention map [h,w] in [0,1], None if there is none.
        style_names: for each sample the styles' names in the manifest, aligned with `styles`.
        prompts: B instructions.
        method: whose edits these are.
        memo: what metrics share, see :func:`eval.metrics.views.remembered`.
    """

    ids: list[str]
    content: Tensor
    output: Tensor
    target: Tensor
    mask: Tensor
    region_masks: list[Tensor]
    styles: list[tuple[str, ...]]
    labels: list[tuple[str, ...]]
    region_maps: list[Tensor | None]
    style_names: list[tuple[str, ...]]
    prompts: list[str]
    method: str = ""
    memo: dict[object, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class MetricInfo:
    """A metric in words.

    Attributes:
        name: key in every output file.
        label: short heading.
        better: which way is better.
        unit: "share" is in [0,1] and shown in percent, "fraction" in [0,1] and shown as it is,
            "value" is any number, "pixels" a length.
        short: one sentence for a reader who sees the metric for the first time.
        definition: exact formula with value range, thresholds and padding.
        group: name under which it is selected with others, see `eval.metrics.GROUPS`.
        needs: the networks and files it requires, see `eval.encoders.networks.REMEDIES`.
    """

    name: str
    label: str
    better: Literal["higher", "lower"]
    unit: Literal["share", "fraction", "value", "pixels"]
    short: str
    definition: str
    group: str = "rse"
    needs: tuple[str, ...] = ()

    @property
    def arrow(self) -> str:
        """Up or down: the better direction."""
        return "↑" if self.better == "higher" else "↓"


@dataclass
class SampleMetric:
    """A metric with one value per sample, computed by a pure function.

    Attributes:
        info: the description.
        function: batch to values [B]; NaN where the metric is undefined.
        encoder: name and weight hash of the network used, empty if none.
        remark: added to the definition, such as the scope.
    """

    info: MetricInfo
    function: Callable[[EvalBatch], Tensor]
    encoder: dict[str, str] = field(default_factory=dict)
    remark: str = ""

    @property
    def name(self) -> str:
        """The key in every output file."""
        return self.info.name

    @property
    def definition(self) -> str:
        """The exact definition as it was computed."""
        return f"{self.info.definition}; {self.remark}" if self.remark else self.info.definition

    @torch.no_grad()
    def __call__(self, batch: EvalBatch) -> Tensor:
        """Values [B] of the batch."""
        return self.function(batch).float().cpu()
