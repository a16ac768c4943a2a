"""Every metric in words, and the way from a batch to its pure function."""

from collections.abc import Callable

import torch
from torch import Tensor

from eval.features import ImageTextEncoder, PerceptualDistance
from eval.metrics.attention import MAP_BOUNDARY, attention_iou, attention_share
from eval.metrics.base import EvalBatch, MetricInfo, SampleMetric
from eval.metrics.lpips import lpips_bg
from eval.metrics.region import (
    CHANGE_THRESHOLD,
    SUCCESS_RATIO,
    coverage,
    in_mask_error,
    in_mask_ratio,
    leak,
    mse_bg,
    success,
)
from eval.metrics.rsm import rsm

_INFOS = [
    MetricInfo(
        "success", "Success", "higher", "share",
        "Share of pictures in which the object came more than half way to its target.",
        f"1 where in_mask_ratio < {SUCCESS_RATIO}, else 0",
    ),
    MetricInfo(
        "in_mask_ratio", "Error left on the object", "lower", "share",
        "How much of the way to the target is still missing on the object: 0 % is the exact "
        "target, 100 % is as far from it as the unedited picture.",
        "in_mask_error of the edit / in_mask_error of the unedited picture; NaN where the latter "
        "is 0",
    ),
    MetricInfo(
        "in_mask_error", "Object error", "lower", "value",
        "Squared distance between the edited object and its target.",
        "sum(M (edit - target)^2) / (3 sum(M)), pictures in [-1,1], M = union of the regions' "
        "masks",
    ),
    MetricInfo(
        "coverage", "Coverage", "higher", "share",
        "How much of the object changed visibly at all.",
        "share of pixels in M whose largest channel difference from the unedited picture is "
        f"> {CHANGE_THRESHOLD} in [0,1]",
    ),
    MetricInfo(
        "mse_bg", "Background error", "lower", "value",
        "Squared change of everything that should have stayed as it was; 0 is no change.",
        "sum((1-M) (edit - source)^2) / (3 sum(1-M)), pictures in [-1,1]; NaN without background",
    ),
    MetricInfo(
        "lpips_bg", "Background LPIPS", "lower", "value",
        "Change of the background as a vision network perceives it; 0 is no change.",
        "spatial LPIPS map (lpips package 0.1, AlexNet) between the source and the edit with the "
        "source pasted inside M, averaged over 1-M; NaN without background, and for changed "
        "pictures below 32 pixels",
    ),
    MetricInfo(
        "leak", "Leak", "lower", "share",
        "How much of the background changed visibly although it should not have.",
        "share of pixels in 1-M whose largest channel difference from the unedited picture is "
        f"> {CHANGE_THRESHOLD} in [0,1]",
    ),
    MetricInfo(
        "attention_iou", "Attention IoU", "higher", "fraction",
        "How well the place the style word attends to coincides with the object: 1 is exactly, "
        "0 is somewhere else.",
        f"IoU of (region map > {MAP_BOUNDARY}) with the mask on the map's grid (cell mean >= .5, "
        "or the touched cells where that is empty); map file 8 bit, value / 256, averaged to the "
        "grid named in the edit's sidecar",
    ),
    MetricInfo(
        "attention_share", "Attention on the object", "higher", "share",
        "How much of the style word's attention falls on the object; attention spread evenly "
        "would give the object's share of the picture.",
        "sum(m A) / sum(A) over the map's grid, A = r / (1 - r) the attention relative to that at "
        "the map's boundary, at most the number of cells, r = the map file's level / 255, m = the "
        "part of the cell that is object",
    ),
    MetricInfo(
        "rsm", "Style match (RSM)", "higher", "value",
        "How well the object fits the name of the style, judged by an image-text network. Its "
        "useful range is narrow: read it beside the floor and the ceiling.",
        "(1 + cos(image(crop), text('{style} style'))) / 2; crop = box of the mask padded by 5 % "
        "of its longer side, at least 8 pixels, clipped; mean over the regions",
    ),
]  # fmt: skip
CATALOGUE: dict[str, MetricInfo] = {info.name: info for info in _INFOS}
MAP_METRICS = ("attention_iou", "attention_share")


def build_metrics(
    distance: PerceptualDistance | None = None, encoder: ImageTextEncoder | None = None
) -> list[SampleMetric]:
    """All metrics that can be computed with what is there, in the catalogue's order.

    Args:
        distance: for ``lpips_bg``; left out without.
        encoder: for ``rsm``; left out without.
    """
    functions = {
        "success": lambda b: success(b.output, b.content, b.target, b.mask),
        "in_mask_ratio": lambda b: in_mask_ratio(b.output, b.content, b.target, b.mask),
        "in_mask_error": lambda b: in_mask_error(b.output, b.target, b.mask),
        "coverage": lambda b: coverage(b.output, b.content, b.mask),
        "mse_bg": lambda b: mse_bg(b.output, b.content, b.mask),
        "leak": lambda b: leak(b.output, b.content, b.mask),
        "attention_iou": lambda b: _from_map(b, attention_iou),
        "attention_share": lambda b: _from_map(b, attention_share),
    }
    metrics = {name: SampleMetric(CATALOGUE[name], run) for name, run in functions.items()}
    for name in MAP_METRICS:
        metrics[name].needs = frozenset({"map"})
    if distance is not None:
        metrics["lpips_bg"] = SampleMetric(
            CATALOGUE["lpips_bg"],
            lambda b: lpips_bg(b.output, b.content, b.mask, distance),
            frozenset({"lpips"}),
            distance.identity(),
        )
    if encoder is not None:
        metrics["rsm"] = SampleMetric(
            CATALOGUE["rsm"],
            lambda b: _mean_rsm(b, encoder),
            frozenset({"clip"}),
            encoder.identity(),
        )
    return [metrics[name] for name in CATALOGUE if name in metrics]


def _from_map(batch: EvalBatch, measure: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """[B]; one sample at a time because grids may differ, NaN where there is no map."""
    values = []
    for region_map, mask in zip(batch.region_maps, batch.mask, strict=True):
        if region_map is None:
            values.append(torch.tensor(torch.nan))
        else:
            values.append(measure(region_map[None, None], mask[None])[0].cpu())
    return torch.stack(values)


def _mean_rsm(batch: EvalBatch, encoder: ImageTextEncoder) -> Tensor:
    """[B]: all regions of the batch in one call of the encoder, then the mean of each sample."""
    counts = [len(masks) for masks in batch.region_masks]
    pictures = batch.output.repeat_interleave(torch.tensor(counts, device=batch.output.device), 0)
    styles = [style for sample in batch.styles for style in sample]
    values = rsm(pictures, torch.cat(batch.region_masks), styles, encoder)
    return torch.stack([part.mean() for part in values.split(counts)])
