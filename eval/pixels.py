"""Pixel metrics of edits in memory: no manifest, no files, no networks."""

from torch import Tensor

from eval.metrics.base import EvalBatch
from eval.metrics.build import build_metrics
from regionroute.errors import UserError

WITHOUT_TARGET = ("coverage", "mse_bg", "boundary_error", "leak", "drift_shift", "drift_zoom")
WITH_TARGET = ("success", "in_mask_ratio", "in_mask_error")


def score_pixels(
    content: Tensor, output: Tensor, mask: Tensor, target: Tensor | None = None
) -> dict[str, Tensor]:
    """Score edits by the pixels of object and background.

    Args:
        content: unedited images [B,3,H,W] in [0,1].
        output: edited images [B,3,H,W] in [0,1].
        mask: [B,1,H,W], the object where it is at least 0.5.
        target: exact or pseudo targets [B,3,H,W] in [0,1]; None: only the metrics that need none.

    Returns:
        For each metric, by its name in `eval.metrics.CATALOGUE` and in that order, its values [B];
        NaN where it is undefined.

    Raises:
        UserError: images or masks of different sizes, or an empty mask.
    """
    for name, given in (("edit", output), ("target", target), ("mask", mask)):
        if given is not None and (len(given), *given.shape[-2:]) != (
            len(content),
            *content.shape[-2:],
        ):
            raise UserError(
                f"{name}: {_size(given)}, but the source is {_size(content)}: score images of one "
                "size"
            )
    inside = (mask >= 0.5).float()
    if not inside.flatten(1).any(1).all():
        raise UserError("mask: it is empty, no pixel reaches 0.5; mark the object")
    names = WITHOUT_TARGET if target is None else (*WITH_TARGET, *WITHOUT_TARGET)
    count = len(content)
    batch = EvalBatch(
        ids=[str(row) for row in range(count)],
        content=content,
        output=output,
        target=content if target is None else target,
        mask=inside,
        region_masks=[one[None] for one in inside],
        styles=[("",)] * count,
        labels=[("",)] * count,
        region_maps=[None] * count,
        style_names=[("",)] * count,
        prompts=[""] * count,
    )
    return {metric.name: metric.function(batch) for metric in build_metrics(names=names)}


def _size(images: Tensor) -> str:
    height, width = images.shape[-2:]
    return f"{len(images)} of {width}x{height} pixels"
