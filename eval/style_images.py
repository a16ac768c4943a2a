"""Style images, the references of some metrics."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from eval.style_names import style_key
from regionroute.data.image_files import images_in, is_image_name
from regionroute.data.images import read_image
from regionroute.errors import UserError
from regionroute.files import file_hash, settings_hash

MAX_SIDE = 512  # larger references are reduced to this
_Found = TypeVar("_Found")


class StyleImages:
    """The images of a folder by style: ``<style>.jpg`` or ``<style>/*.jpg``.

    Names are compared by `style_key`: PixelArt.jpg is "pixel-art", watercolor.jpg "watercolour".

    Args:
        folder: with an image or a folder of images for each style.

    Raises:
        UserError: it is no folder or holds no image.
    """

    def __init__(self, folder: str | Path) -> None:
        root = Path(folder).expanduser()
        if not root.is_dir():
            found = "this is a file, give a folder" if root.exists() else "no such folder"
            raise UserError(f"--style-images {folder}: {found}")
        self.files: dict[str, list[Path]] = {}
        for path in sorted(root.iterdir()):
            hidden = path.name.startswith(".")
            pictures = images_in(path) if path.is_dir() and not hidden else [path]
            if any(map(is_image_name, pictures)):
                self.files.setdefault(style_key(path.stem), []).extend(pictures)
        if not self.files:
            raise UserError(f"--style-images {folder}: no image in this folder")
        self._made: dict[tuple[str, str], object] = {}

    def missing(self, styles: Iterable[str]) -> list[str]:
        """The styles without an image."""
        return sorted({style for style in styles if style_key(style) not in self.files})

    def of(self, style: str) -> list[Path]:
        """A style's files, none for an unknown style."""
        return self.files.get(style_key(style), [])

    def pictures(self, style: str) -> list[Tensor]:
        """A style's images [3,h,w] in [0,1], none for an unknown style.

        Raises:
            UserError: one is damaged.
        """
        return [_reduced(read_image(file)) for file in self.of(style)]

    def made(self, what: str, style: str, make: Callable[[list[Tensor]], _Found]) -> _Found | None:
        """What a network makes of a style's images, made once; None for an unknown style.

        Args:
            what: a name for what is made.
            style: the style.
            make: images to whatever it is.
        """
        key = (what, style_key(style))
        if key not in self._made:
            pictures = self.pictures(style)
            self._made[key] = make(pictures) if pictures else None
        found: _Found | None = self._made[key]  # type: ignore[assignment]
        return found

    def identity(self) -> str:
        """A hash of all images and the styles they stand for."""
        return settings_hash(
            {style: [file_hash(file) for file in files] for style, files in self.files.items()}
        )


def _reduced(picture: Tensor) -> Tensor:
    longer = max(picture.shape[1:])
    if longer <= MAX_SIDE:
        return picture
    size = [max(1, round(side * MAX_SIDE / longer)) for side in picture.shape[1:]]
    resized = F.interpolate(picture[None], size, mode="bilinear", antialias=True)
    return torch.clamp(resized[0], 0, 1)
