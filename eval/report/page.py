"""What the HTML pages share: figures, the row of a sample's images, rendering into one file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor

from eval.edits import load_map
from eval.report.images import PIXEL_ART_SIDE, data_address, overlay
from regionroute.data.images import read_image, read_mask
from regionroute.errors import UserError
from regionroute.files import write_text
from regionroute.settings_files import check_page_output

View = dict[str, Any]


def check_page(option: str, path: str) -> None:
    """As `check_page_output`; its sentence names the option."""
    check_option(option, path, check_page_output)


def check_option(option: str, value: str, check: Callable[[str], None]) -> None:
    """Runs a check of a path and names the option in its sentence.

    Raises:
        UserError: the check's.
    """
    try:
        check(value)
    except UserError as error:
        separator = " " if value else ": "
        raise UserError(f"{option}{separator}{error}") from error


def write_page(template: str, out: Path, **values: Any) -> None:
    """Fills a template of ``eval/templates`` and writes the page in one go.

    Everything that comes from data is escaped; a name missing in the template is an error.
    """
    environment = Environment(
        loader=PackageLoader("eval"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template(template).render(**values)
    write_text(out, html)


def figure(caption: str, colour: int | None, read: Callable[[], Tensor]) -> View:
    """An image, or the reason why there is none.

    Args:
        caption: below the image.
        colour: number of the method's colour, None for none.
        read: gives the image [3,H,W] in [0,1]; may raise `UserError`.
    """
    try:
        image = read()
    except UserError as error:
        return missing(caption, colour, str(error))
    small = max(image.shape[1:]) <= PIXEL_ART_SIDE
    return {
        "caption": caption,
        "colour": colour,
        "src": data_address(image),
        "pixelated": small,
        "problem": None,
    }


def missing(caption: str, colour: int | None, problem: str) -> View:
    """The place of an image that is not there, with the reason."""
    return {"caption": caption, "colour": colour, "src": None, "problem": problem}


def read_source(scores: Path, files: View) -> tuple[Tensor, Tensor]:
    """The unedited image [3,H,W] and the union of the masks [1,H,W] of a row's files.

    Raises:
        UserError: one is missing or damaged.
    """
    masks = [read_mask(scores / name) for name in files["masks"]]
    return read_image(scores / files["source"]), torch.stack(masks).amax(0)


def map_overlay(scores: Path, row: View, *, contour: bool = False) -> Tensor:
    """A row's map over its unedited image, see :func:`eval.report.images.overlay`.

    Raises:
        UserError: a file is missing or damaged.
    """
    source, mask = read_source(scores, row["files"])
    folder = (scores / row["files"]["map"]).parent
    return overlay(source, load_map(folder, row["id"]), mask, contour=contour)
