"""Files of an edit: the image, its metadata, its region map, a side-by-side."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from regionroute.data.images import LoadedImage, from_pil, to_pil, write_image
from regionroute.editing.metadata import mask_to_text
from regionroute.errors import UserError
from regionroute.files import (
    check_inputs_kept,
    check_output_file,
    write_json,
)
from regionroute.settings_files import check_png_name, check_settings_file

PANEL = 256  # pixels; smaller images are enlarged for the side-by-side
MARGIN, LABEL_HEIGHT = 8, 22
TINT = (1.0, 0.35, 0.1)


@dataclass(frozen=True)
class Destination:
    """The files of one edit; its metadata goes to ``image`` with the suffix ``.json``.

    Attributes:
        image: the edited image, a PNG.
        map: the region map as a grey PNG, or None.
        side_by_side: source, edit and map in one PNG, or None.
    """

    image: Path
    map: Path | None = None
    side_by_side: Path | None = None

    @property
    def wants_map(self) -> bool:
        """Whether the region map has to be recorded."""
        return self.map is not None or self.side_by_side is not None

    @property
    def files(self) -> list[Path]:
        """All files that will be written."""
        others = [path for path in (self.map, self.side_by_side) if path is not None]
        return [*others, self.image.with_suffix(".json"), self.image]


def check_destination(destination: Destination, inputs: Sequence[Path]) -> None:
    """Check before editing that the files can be written and overwrite no other file.

    Args:
        destination: where the results go.
        inputs: the image to edit, and masks and style images if there are any.

    Raises:
        UserError: wrong suffix, a folder instead of a file, no permission, the same name
            twice, an input, or a settings file's name that a file of another origin has.
    """
    if not destination.image.name:  # '', '.' and '/'
        raise UserError(f"output {destination.image}: give a file name such as out.png")
    for path in destination.files:
        if path.suffix.lower() != ".json":
            check_png_name(path)
        if os.path.isdir(path):
            raise UserError(f"{path}: this is a folder, give a file name such as {path}/out.png")
        check_output_file(path)
    if len({os.path.realpath(path) for path in destination.files}) < len(destination.files):
        raise UserError(f"{destination.image}: two of its files have the same name, change one")
    check_inputs_kept(destination.files, inputs)
    check_settings_file(destination.image)


def write_edit(
    destination: Destination,
    source: LoadedImage,
    edited: Tensor,
    region_map: Tensor | None,
    metadata: dict[str, Any],
    *,
    keep_exif: bool = False,
    regions: Sequence[Tensor] = (),
) -> None:
    """Write all requested files, the edited image last: where it exists, the rest does too.

    Args:
        destination: where.
        source: the image before the edit; the edit keeps its transparency and colour profile.
        edited: the image after it, [3,H,W] in [0,1].
        region_map: [h,w] in [0,1], if the destination wants one.
        metadata: of the edit, JSON-able.
        keep_exif: also keep its EXIF.
        regions: those that were given with the request, [H,W] in [0,1]; stored with the settings.
    """
    settings = dict(metadata)
    if source.notes:
        settings["notes"] = [*source.notes]
    if regions:
        settings["region_masks"] = [mask_to_text(region) for region in regions]
    if destination.wants_map:
        assert region_map is not None, "the map was not recorded"
        full = enlarge_map(region_map, *source.rgb.shape[-2:])
        if destination.map is not None:
            write_image(destination.map, full)
            sites = settings.get("map", {})  # the attention sites it was read from
            grid = list(region_map.shape)
            settings["map"] = {"file": destination.map.name, "grid": grid, **sites}
        if destination.side_by_side is not None:
            words = _caption(settings["object"], settings["style"])
            panels = {"source": source.rgb, words: edited, "map": overlay(source.rgb, full)}
            write_image(destination.side_by_side, side_by_side(panels))
    write_json(destination.image.with_suffix(".json"), settings)
    parameters = json.dumps(settings, ensure_ascii=False)
    write_image(
        destination.image,
        source.restored(edited),
        {"parameters": parameters},
        icc_profile=source.icc_profile,
        exif=source.exif if keep_exif else None,
    )


def _caption(objects: str | list[str], styles: str | list[str]) -> str:
    if isinstance(objects, str) or isinstance(styles, str):
        return f"{objects}: {styles}"
    return ", ".join(f"{words}: {style}" for words, style in zip(objects, styles, strict=True))


def enlarge_map(region_map: Tensor, height: int, width: int) -> Tensor:
    """Enlarge a map [h,w] to an image [1,H,W] by nearest neighbour, one patch per token."""
    return F.interpolate(region_map[None, None], size=(height, width), mode="nearest-exact")[0]


def overlay(source: Tensor, full_map: Tensor) -> Tensor:
    """The image [3,H,W] in grey, tinted where the map [1,H,W] is high."""
    grey = source.mean(0, keepdim=True).expand(3, -1, -1)
    strength = 0.75 * full_map
    return grey * (1 - strength) + torch.tensor(TINT)[:, None, None] * strength


def side_by_side(panels: dict[str, Tensor]) -> Tensor:
    """Put labelled images in a row.

    Args:
        panels: label -> [3,H,W] in [0,1], all of one size.

    Returns:
        [3,H',W'] in [0,1].
    """
    _, height, width = next(iter(panels.values())).shape
    factor = max(1, math.ceil(PANEL / max(height, width)))
    height, width = height * factor, width * factor
    row = Image.new(
        "RGB",
        ((width + MARGIN) * len(panels) + MARGIN, height + LABEL_HEIGHT + MARGIN),
        "white",
    )
    draw, font = ImageDraw.Draw(row), ImageFont.load_default(14)
    for index, (label, image) in enumerate(panels.items()):
        left = MARGIN + index * (width + MARGIN)
        while len(label) > 1 and draw.textlength(label, font) > width:
            label = label[:-2] + "…"
        draw.text((left, 2), label, fill="black", font=font)
        enlarged = to_pil(image).resize((width, height), Image.Resampling.NEAREST)
        row.paste(enlarged, (left, LABEL_HEIGHT))
    return from_pil(row)
