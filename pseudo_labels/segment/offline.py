"""An object cut out of its box without SAM: saliency and GrabCut, each counted by how it fits.

U²-Net-p looks at the box with a narrow and with a wide rim, GrabCut parts the box from its
surroundings by colour. Either fails at times, but a box is tight: the object reaches all its four
sides. So each opinion counts by the sides that it reaches and by how much of the box it fills, and
a mild preference for the middle decides where they are of two minds.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pseudo_labels.segment import Box
from pseudo_labels.segment.salient import largest_parts, shared_network
from regionroute.data.images import to_pil
from regionroute.errors import UserError

RIMS = (0.1, 0.5)  # of the box's sides, around what the network looks at
COLOUR_RIM = 0.25  # of the box's sides, around what GrabCut takes for background
PRIOR_WEIGHT = 0.3  # of the preference for the middle
OPEN = 0.45  # blend from which a pixel belongs to the object
_FULL = 0.4  # share of the box from which an opinion is not too small
_REACH = 0.05  # of the box's sides: how near counts as reached
_GRABCUT_SIDE = 256  # pixels of the longer side at which GrabCut works
_GRABCUT_ROUNDS = 5


class OfflineSegmenter:
    """U²-Net-p and GrabCut, or GrabCut alone.

    Args:
        weights: the network's file, None to look for it (`SalientNetwork`).
        saliency: whether the network is asked; without it nothing but OpenCV is needed.

    Raises:
        UserError: OpenCV is not installed, or the network cannot be had.
    """

    def __init__(self, weights: str | None = None, saliency: bool = True) -> None:
        self._cv2 = opencv()
        self._network = shared_network(weights) if saliency else None
        self.name = "u2netp and grabcut" if saliency else "grabcut"

    def segment(self, image: Tensor, boxes: Sequence[Box]) -> list[tuple[Tensor, float]]:
        """See `BoxSegmenter.segment`; scores are the mean blend inside the mask."""
        return [self._cut_out(image, box) for box in boxes]

    def _cut_out(self, image: Tensor, box: Box) -> tuple[Tensor, float]:
        y0, x0, y1, x1 = box
        opinions = [self._by_colour(image, box)]
        if self._network is not None:
            views = [_crop(image, box, rim) for rim in RIMS]
            seen = [_inside(self._network.saliency(view), place) for view, place in views]
            opinions.append(torch.stack(seen).mean(0))
        weights = torch.tensor([0.02 + _fit(opinion) for opinion in opinions])
        shares = weights / weights.sum()
        blend = torch.stack([w * o for w, o in zip(shares, opinions, strict=True)]).sum(0)
        blend = (1 - PRIOR_WEIGHT) * blend + PRIOR_WEIGHT * _middle(image, box)
        mask = torch.zeros(1, *image.shape[-2:])
        mask[:, y0:y1, x0:x1] = largest_parts(blend > OPEN)
        inside = mask[:, y0:y1, x0:x1] > 0
        return mask, float(blend[inside].mean()) if inside.any() else 0.0

    def _by_colour(self, image: Tensor, box: Box) -> Tensor:
        """GrabCut's object [1, h, w] in the box, in [0, 1]."""
        crop, place = _crop(image, box, COLOUR_RIM)
        height, width = crop.shape[-2:]

        def start(rows: int, columns: int) -> np.ndarray:
            allowed = torch.zeros(1, 1, height, width)
            allowed[..., place[0] : place[2], place[1] : place[3]] = 1
            inside = F.interpolate(allowed, (rows, columns), mode="nearest-exact")[0, 0].numpy() > 0
            state = np.where(inside, self._cv2.GC_PR_FGD, self._cv2.GC_BGD)
            return state.astype(np.uint8)

        return _inside(grabcut(crop, start), place)


def _crop(image: Tensor, box: Box, rim: float) -> tuple[Tensor, Box]:
    """The box with a rim around it, and where the box lies in that."""
    y0, x0, y1, x1 = box
    height, width = image.shape[-2:]
    dy, dx = max(4, int(rim * (y1 - y0))), max(4, int(rim * (x1 - x0)))
    top, left = max(0, y0 - dy), max(0, x0 - dx)
    crop = image[:, top : min(height, y1 + dy), left : min(width, x1 + dx)]
    return crop, (y0 - top, x0 - left, y1 - top, x1 - left)


def _inside(picture: Tensor, place: Box) -> Tensor:
    return picture[:, place[0] : place[2], place[1] : place[3]]


def _fit(opinion: Tensor) -> float:
    """How well an opinion [1, h, w] fits a tight box: sides reached times fullness, 0 to 1."""
    mask = opinion[0] > 0.5
    dy, dx = (max(1, round(_REACH * side)) for side in mask.shape)
    sides = (mask[:dy], mask[-dy:], mask[:, :dx], mask[:, -dx:])
    reached = sum(bool(side.any()) for side in sides) / 4
    return reached * min(float(opinion.mean()) / _FULL, 1.0)


def _middle(image: Tensor, box: Box) -> Tensor:
    """Preference [1, h, w] for the box's middle, weak towards sides where the image ends."""
    y0, x0, y1, x1 = box
    height, width = image.shape[-2:]
    y = _ramp(y1 - y0, before=y0 == 0, after=y1 == height)
    x = _ramp(x1 - x0, before=x0 == 0, after=x1 == width)
    return torch.sigmoid(-6 * (y[:, None] ** 2.5 + x[None] ** 2.5 - 0.75))[None]


def _ramp(length: int, before: bool, after: bool) -> Tensor:
    """Distance from the middle, 1 at the ends, 0.3 at ends where the image cuts the object."""
    place = torch.linspace(-1, 1, length)
    ends = torch.where(place < 0, 0.3 if before else 1.0, 0.3 if after else 1.0)
    return place.abs() * ends


def grabcut(image: Tensor, start: Callable[[int, int], np.ndarray]) -> Tensor:
    """Part an object from its surroundings by colour, given a first guess (Rother et al., 2004).

    Args:
        image: [3,H,W] in [0,1].
        start: gives the first guess for a smaller (height, width): uint8 [h,w] of OpenCV's
            `GC_BGD`, `GC_FGD`, `GC_PR_BGD` and `GC_PR_FGD`. A guess that is all object or all
            background is the result.

    Returns:
        The object, [1,H,W] in [0,1], its boundary at 0.5.

    Raises:
        UserError: OpenCV is not installed.
    """
    cv2 = opencv()
    height, width = image.shape[-2:]
    scale = min(1.0, _GRABCUT_SIDE / max(height, width))
    size = (max(8, round(width * scale)), max(8, round(height * scale)))
    pixels = np.asarray(to_pil(image).resize(size, Image.Resampling.BOX))[..., ::-1].copy()
    state = start(size[1], size[0])
    if 0 < _object(cv2, state).sum() < state.size:
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.setRNGSeed(0)  # its colour clusters start at random
        cv2.grabCut(pixels, state, None, *models, _GRABCUT_ROUNDS, cv2.GC_INIT_WITH_MASK)
    found = torch.from_numpy(_object(cv2, state).astype(np.float32))
    return F.interpolate(found[None, None], (height, width), mode="bilinear")[0]


def opencv() -> Any:
    """The module.

    Raises:
        UserError: it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise UserError("this segmenter needs OpenCV: pip install 'regionroute[label]'") from error
    return cv2


def _object(cv2: Any, state: np.ndarray) -> np.ndarray:
    return np.isin(state, (cv2.GC_FGD, cv2.GC_PR_FGD))
