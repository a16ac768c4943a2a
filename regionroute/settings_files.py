"""What a command makes: an image, out.png, with its settings file, out.json, or a page."""

import os
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from regionroute.errors import UserError
from regionroute.files import AnyPath, check_output_file, read_json, shown_path

_GENERATOR = b'<meta name="generator" content="regionroute">'  # in the head of all our pages


def check_png_name(path: AnyPath) -> None:
    """Refuses a name for an image that is empty or does not end in .png.

    Raises:
        UserError: it is.
    """
    if not Path(path).name:
        raise UserError("the name of the image to write is empty, give one that ends in .png")
    if Path(path).suffix.lower() != ".png":
        raise UserError(
            f"{shown_path(path)}: images are written as PNG, give a name that ends in .png"
        )


def versions(
    packages: Iterable[str] = ("regionroute", "torch", "diffusers"),
) -> dict[str, str]:
    """What a file says under "versions"; a settings file of ours is recognised by it."""
    return {name: version(name) for name in packages}


def is_settings_file(path: AnyPath) -> bool:
    """Whether a file is the settings file of an image that one of our commands made.

    Runs and scores say their versions too; of an image the file names the prompt or the photo.
    """
    try:
        found = read_json(path)
    except (UserError, OSError):
        return False
    if not isinstance(found, dict) or not {"prompt", "photo"} & found.keys():
        return False
    made_by = found.get("versions")
    return isinstance(made_by, dict) and "regionroute" in made_by


def check_settings_file(image: Path) -> None:
    """Refuses, before any work, an image whose settings would overwrite a file of another origin.

    Args:
        image: to be written.

    Raises:
        UserError: there is such a file.
    """
    settings = image.with_suffix(".json")
    if settings.exists() and not is_settings_file(settings):
        raise UserError(
            f"{shown_path(settings)}: the settings of {image.name} would overwrite this file, "
            "which is not the settings of an image: choose another name for the output"
        )


def check_page_output(path: AnyPath) -> None:
    """Refuses, before any work, a page that could not be written or would cost another file.

    Raises:
        UserError: the name is not that of a page, a file of another origin has it, or nothing can
            be written there.
    """
    check_output_file(path)
    if Path(path).suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{shown_path(path)}: this is a web page, give a name that ends in .html")
    if os.path.exists(path):
        with open(path, "rb") as file:
            ours = _GENERATOR in file.read(1000)
        if not ours:
            raise UserError(
                f"{shown_path(path)}: this file is not a page of regionroute, it would be "
                "overwritten: remove it or choose another name"
            )
