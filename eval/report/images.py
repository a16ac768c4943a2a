"""Images of the report: small enough to embed, large enough to see, as data addresses."""

import base64
import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from regionroute.data.images import to_pil
from regionroute.data.region_scores import MAP_BOUNDARY

MAX_SIDE = 320  # larger images are reduced to this for the report; the numbers are not
PIXEL_ART_SIDE = 128  # up to this the report shows single pixels, as lossless PNG
OVERLAY_SIDE = 224  # overlays are drawn at least this large, so that the heat looks smooth
HEAT_OPACITY = 0.72
CHANGE_FULL = 0.5  # change of a channel drawn as full heat
CONTOUR_WIDTH = 2
CONTOUR_COLOUR = torch.tensor([0.36, 0.87, 1.0])  # no heat has this hue
JPEG_QUALITY = 88

# Dark violet to yellow, equally spaced; readable for the colour-blind and in print.
_HEAT = torch.tensor(
    [[11, 7, 36], [66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]]
).float() / 255  # fmt: skip


def data_address(image: Tensor) -> str:
    """An image [3,H,W] in [0,1] as text for an ``src`` attribute.

    Up to 128 pixels it is a PNG with the very pixels; above, a JPEG of at most 320 pixels.
    """
    picture = to_pil(image)
    buffer = io.BytesIO()
    if max(picture.size) <= PIXEL_ART_SIDE:
        picture.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
        picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def heat_colours(values: Tensor) -> Tensor:
    """Colours [3,H,W] of values [H,W] in [0,1], linear between the table's entries."""
    place = values.clamp(0, 1) * (len(_HEAT) - 1)
    lower = place.floor().long().clamp(max=len(_HEAT) - 2)
    weight = (place - lower).unsqueeze(-1)
    return (_HEAT[lower] * (1 - weight) + _HEAT[lower + 1] * weight).permute(2, 0, 1)


def heat_gradient() -> list[str]:
    """The heat's colours at 24 steps from 0 to 1 as CSS, for a legend."""
    colours = (heat_colours(torch.linspace(0, 1, 24)[None]) * 255).round().int()
    return [f"rgb({red} {green} {blue})" for red, green, blue in colours[:, 0].T.tolist()]


def mask_outline(mask: Tensor, width: int = 1) -> Tensor:
    """The inner rim of a mask [1,H,W], `width` pixels wide: [1,H,W] in {0,1}."""
    outside = F.pad(1 - mask[None], (width,) * 4, value=0.0)
    near_outside = F.max_pool2d(outside, 2 * width + 1, stride=1)[0]
    return mask * near_outside


def spotlight(source: Tensor, mask: Tensor) -> Tensor:
    """The source [3,H,W] with everything outside the mask [1,H,W] grey and dim."""
    grey = source.mean(0, keepdim=True) * 0.3 + 0.1
    return torch.where(mask > 0, source, grey)


def outlined(source: Tensor, mask: Tensor) -> Tensor:
    """The source [3,H,W] with the rim of the mask [1,H,W] in white: at the size of overlays."""
    size = _overlay_size(source.shape[1], source.shape[2])
    large = F.interpolate(source[None], size, mode="nearest-exact")[0]
    return _with_rim(large, mask)


def overlay(source: Tensor, region_map: Tensor, mask: Tensor, *, contour: bool = False) -> Tensor:
    """The map as heat over the greyed source, with the mask's rim in white.

    Args:
        source: [3,H,W] in [0,1].
        region_map: [h,w] in [0,1], drawn bilinearly.
        mask: [1,H,W] in {0,1}.
        contour: also draw, in light blue, where the map crosses its boundary.

    Returns:
        [3,H',W'], at least 224 and at most 320 pixels on the longer side.
    """
    size = _overlay_size(source.shape[1], source.shape[2])
    grey = source.mean(0, keepdim=True).expand(3, -1, -1)
    grey = F.interpolate(grey[None], size, mode="nearest-exact")[0]
    heat = F.interpolate(region_map[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    picture = (1 - HEAT_OPACITY) * grey + HEAT_OPACITY * heat_colours(heat)
    picture = _with_rim(picture.clamp(0, 1), mask)
    if not contour:
        return picture
    line = mask_outline((heat > MAP_BOUNDARY).float()[None], CONTOUR_WIDTH)
    return torch.where(line > 0, CONTOUR_COLOUR[:, None, None], picture)


def change_map(source: Tensor, edit: Tensor, mask: Tensor) -> Tensor:
    """Where an edit changed the image, as heat over its own grey, with the mask's rim in white.

    Args:
        source: [3,H,W] in [0,1].
        edit: [3,H',W'] in [0,1], resized to the source's size where it differs.
        mask: [1,H,W] in {0,1}.

    Returns:
        [3,H'',W''] of the overlays' size; full heat is a change of half the range in any channel.
    """
    if edit.shape != source.shape:
        edit = F.interpolate(edit[None], source.shape[1:], mode="bilinear", antialias=True)[0]
    change = (edit - source).abs().amax(0) / CHANGE_FULL
    size = _overlay_size(source.shape[1], source.shape[2])
    grey = source.mean(0, keepdim=True).expand(3, -1, -1)
    grey = F.interpolate(grey[None], size, mode="nearest-exact")[0]
    heat = F.interpolate(change[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    picture = (1 - HEAT_OPACITY) * grey * 0.6 + HEAT_OPACITY * heat_colours(heat.clamp(0, 1))
    return _with_rim(picture.clamp(0, 1), mask)


def _with_rim(picture: Tensor, mask: Tensor) -> Tensor:
    """The image [3,H',W'] with the rim of the mask [1,H,W] in white, edged in black outside."""
    size = (picture.shape[1], picture.shape[2])
    large = F.interpolate(mask[None], size, mode="nearest-exact")[0]
    edge = F.max_pool2d(large[None], 3, stride=1, padding=1)[0] - large
    edged = torch.where(edge > 0, torch.zeros(()), picture)  # seen on light images too
    return torch.where(mask_outline(large) > 0, torch.ones(()), edged)


def _overlay_size(height: int, width: int) -> tuple[int, int]:
    longer = max(height, width)
    scale = min(MAX_SIDE, max(OVERLAY_SIDE, longer)) / longer
    sides = np.maximum(1, np.round(np.array([height, width]) * scale)).astype(int)
    return int(sides[0]), int(sides[1])
