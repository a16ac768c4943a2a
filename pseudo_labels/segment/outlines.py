"""COCO's outlines, polygons and run lengths, as masks; everything is checked before it is drawn."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from pseudo_labels.segment import Box
from pseudo_labels.segment.frame import (
    Frame,
    Size,
    check_inside,
    match_frame,
    stated_size,
    upright,
)
from regionroute.data.image_files import ImageHeader, max_pixels
from regionroute.errors import UserError

_FORMS = (
    "'segmentation' must be polygons [[x, y, x, y, ...]] or run lengths with 'size' and 'counts', "
    "as in COCO"
)
CORNERS = 3  # fewer enclose nothing
_LARGEST = 1e7  # of a coordinate, in pixels


def outline_of(segmentation: Any, stated: Size | None) -> str | None:
    """A COCO "segmentation" as JSON that says which frame it belongs to.

    Args:
        segmentation: as the label file has it.
        stated: (height, width) that the file states for the image, None: nothing.

    Returns:
        Text for `outline_mask`; None where nothing is outlined, as in COCO's boxes.
    """
    if segmentation is None or segmentation in ([], {}, ""):
        return None
    if stated is not None and isinstance(segmentation, list):
        return json.dumps({"size": list(stated), "polygons": segmentation})
    return json.dumps(segmentation)


def outline_mask(outline: Any, header: ImageHeader) -> Tensor:
    """A mask from an outline.

    Args:
        outline: polygons [[x, y, x, y, ...], ...] in pixels, a single such list, points
            [[x, y], ...]; or run lengths {"size": [H, W], "counts": list or text}; or
            {"size": [H, W], "polygons": [...]}.
        header: size and orientation of the image.

    Returns:
        Mask [1, H, W] in {0, 1} of the upright image, which may be empty.

    Raises:
        UserError: it is none of these, is damaged, or belongs to an image of another aspect.
    """
    if not isinstance(outline, Mapping):
        return _draw(outline, Frame(header.size, header.size))
    size = outline.get("size", header.size)
    if not isinstance(size, (list, tuple)) or len(size) != 2:
        raise UserError(f"{_FORMS}; 'size' is {_short(size)}, not [height, width]")
    frame = match_frame(stated_size(*size), header)
    if "polygons" in outline:
        return _draw(outline["polygons"], frame)
    if "counts" not in outline:
        raise UserError(f"{_FORMS}; 'counts' is missing")
    return frame.mask(upright(decode_runs(outline["counts"], frame.stated)))


def decode_runs(counts: Any, size: Size) -> np.ndarray:
    """Run lengths of COCO as a boolean mask [H,W].

    Args:
        counts: lengths of runs, zeros first, in column order; a list, or COCO's compressed text.
        size: (height, width).

    Raises:
        UserError: they are no lengths, or their sum is not H·W.
    """
    if isinstance(counts, str):
        counts = _decompress(counts)
    if not isinstance(counts, list):
        raise UserError(f"{_FORMS}; 'counts' is {_short(counts)}")
    for count in counts:
        whole = isinstance(count, int) or (isinstance(count, float) and count.is_integer())
        if not whole or isinstance(count, bool) or count < 0:
            raise UserError(f"the run length {_short(count)} is not a whole number of 0 or more")
    height, width = size
    total = sum(int(count) for count in counts)
    if total != height * width:
        shown = total if total < 10**15 else "far more"
        raise UserError(
            f"the run lengths sum to {shown}, an image of {width}x{height} pixels has "
            f"{height * width}: the outline is damaged or of another image"
        )
    if total > max_pixels():
        raise UserError(f"the run lengths are of {width}x{height} pixels, that is too large")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, np.array(counts, dtype=np.int64)).reshape(width, height).T


def _decompress(text: str) -> list[int]:
    """COCO's compressed text (``rleFrString``): 5 bits a letter, differences from the third on."""
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 50:
            raise UserError(f"the run lengths {_short(text)} are no text of COCO's form")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise UserError("the text of the run lengths is cut off")
    return counts


def _draw(outline: Any, frame: Frame) -> Tensor:
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise UserError(
            "polygons need the package pycocotools: pip install 'regionroute[label]'"
        ) from error
    height, width = frame.size
    pieces = [frame.points(piece) for piece in _pieces(outline)]
    check_inside(np.concatenate(pieces), frame.size)
    runs = coco_mask.frPyObjects([piece.ravel().tolist() for piece in pieces], height, width)
    return upright(coco_mask.decode(coco_mask.merge(runs)) > 0)


def _pieces(outline: Any) -> list[np.ndarray]:
    """Polygons [N,2] with at least three corners each; smaller pieces are dropped."""
    if not isinstance(outline, list) or not outline:
        raise UserError(_FORMS)
    if all(_is_number(value) for value in outline):
        outline = [outline]
    elif all(isinstance(p, list) and len(p) == 2 and all(map(_is_number, p)) for p in outline):
        outline = [[value for point in outline for value in point]]
    pieces = []
    for piece in outline:
        if not isinstance(piece, list) or not all(_is_number(value) for value in piece):
            raise UserError(f"{_FORMS}; a piece is {_short(piece)}")
        if len(piece) % 2:
            raise UserError(f"a polygon has {len(piece)} numbers, x and y must come in pairs")
        if len(piece) >= 2 * CORNERS:
            pieces.append(np.array(piece, dtype=float).reshape(-1, 2))
    if not pieces:
        raise UserError(f"no polygon has {CORNERS} corners or more, nothing is enclosed")
    return pieces


def _is_number(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) < _LARGEST  # which NaN and infinity are not


def corner_box(bbox: Any) -> Box:
    """COCO's [x, y, width, height] as (y0, x0, y1, x1) in whole pixels.

    Raises:
        UserError: not four numbers, or nothing inside.
    """
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        raise UserError("'bbox' must be [x, y, width, height] in pixels, as in COCO")
    x, y, width, height = bbox
    if width < 1 or height < 1:
        shares = max(bbox) <= 1
        hint = ", these look like shares of the image (0 to 1)" if shares else ""
        raise UserError(
            f"'bbox' must be [x, y, width, height] in pixels, as in COCO, not {bbox}{hint}"
        )
    return round(y), round(x), round(y + height), round(x + width)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
