"""Files of a restyled photo: the image, its record, and on request the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from pseudo_labels.stylegallery.gallery import GalleryResult
from pseudo_labels.stylegallery.page import write_page
from pseudo_labels.stylegallery.stylizer import AttentionEnergyStylizer
from regionroute.data.images import write_image
from regionroute.files import write_json


def write_result(
    out: Path,
    photo: Path,
    image: Tensor,
    result: GalleryResult,
    stylizer: AttentionEnergyStylizer,
    page: Path | None = None,
) -> list[str]:
    """Write ``out``, next to it a JSON record of all settings, and the page.

    Args:
        out: PNG, written last.
        photo: file of the photo.
        image: [3, H, W] in [0, 1], the photo.
        result: the restyled photo, its matches and losses.
        stylizer: made the result.
        page: HTML file, None for no page.

    Returns:
        Warnings, one sentence each; the files hold them too.
    """
    facts: dict[str, Any] = {
        "photo": photo.name,
        "references": [file.name for file in stylizer.files],
        "matches": result.matches,
        "styled": result.styled,
        "loss": {"first": result.losses[0], "last": result.losses[-1]} if result.losses else None,
        "settings": stylizer.config,
        **({"networks": stylizer.networks} if stylizer.networks else {}),
        **stylizer.remarks,
    }
    warnings = []
    if stylizer.remarks:
        random = ", ".join(stylizer.remarks["random_weights"])
        warnings = [f"random weights ({random}): the image is meaningless"]
        facts["warnings"] = warnings
    if page:
        write_page(page, image, result, warnings)
    write_json(out.with_suffix(".json"), facts)
    write_image(out, result.image)
    return warnings
