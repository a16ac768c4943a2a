"""The score tab: pixel metrics of one edit, with the source and the object's mask as reference."""

from __future__ import annotations

import math
from pathlib import Path

from regionroute.data.images import read_image, read_mask


def score_edit(
    source: Path, edited: Path, mask: Path, target: Path | None = None
) -> list[tuple[str, str, str]]:
    """Measure an edit as `regionroute score` does.

    Args:
        source: the unedited image.
        edited: the edit, of the same size.
        mask: white where the object is.
        target: what the edit should have been, if that is known.

    Returns:
        Name with the better direction, value, and meaning of each metric.

    Raises:
        UserError: a file that cannot be read, or sizes that differ.
    """
    # From inside the function: the library does not need the evaluation package.
    from eval.metrics import CATALOGUE
    from eval.pixels import score_pixels

    content = read_image(source)
    size = (content.shape[-2], content.shape[-1])
    region = read_mask(mask, size)[None]
    wanted = None if target is None else read_image(target)[None]
    found = score_pixels(content[None], read_image(edited)[None], region, wanted)
    infos = {name: CATALOGUE[name] for name in found}
    return [
        (f"{info.label} {info.arrow}", shown(float(found[name][0]), info.unit), info.short)
        for name, info in infos.items()
    ]


def shown(value: float, unit: str) -> str:
    """A value with its unit; a dash where the metric is undefined."""
    if math.isnan(value):
        return "–"
    if unit == "share":
        return f"{100 * value:.1f} %"
    return f"{value:.2f} px" if unit == "pixels" else f"{value:.4g}"
