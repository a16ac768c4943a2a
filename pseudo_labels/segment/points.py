"""An object cut out at a point that a person clicked: by SAM, else by saliency and GrabCut.

segmenter   auto                      offline where the weights of U²-Net-p are found, else grabcut
            offline[:FILE]            U²-Net-p where the point lies on its object, else GrabCut
            grabcut                   GrabCut from a disc around the point: no weights at all
            sam:…, FOLDER or hub id   SAM, as in `pseudo_labels.segment.loading`
"""

import functools
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pseudo_labels.segment.loading import FinderSettings
from pseudo_labels.segment.offline import grabcut, opencv
from pseudo_labels.segment.salient import U2NETP, largest_parts, shared_network
from pseudo_labels.segment.weights import weights_folders
from regionroute.errors import UserError

Point = tuple[int, int]  # (y, x) in pixels
DISC, REACH = 0.04, 0.42  # of the longer side: certainly the object; where it may be at most
SALIENT = 0.5  # saliency from which a pixel belongs to the salient object


class PointSegmenter(Protocol):
    """Cuts out what is at a point.

    Attributes:
        name: what it is, for the user.
    """

    name: str

    def segment_point(self, image: Tensor, point: Point) -> Tensor:
        """Mask [1, H, W] in {0, 1} of the object at a point of an image [3, H, W] in [0, 1]."""
        ...


def load_point_segmenter(name: str = "auto", device: str = "cpu") -> PointSegmenter:
    """A segmenter by its name, see this module; loaded once a process.

    Raises:
        UserError: it is unknown or cannot be loaded.
    """
    return _segmenter(name, device)


@functools.cache
def _segmenter(name: str, device: str) -> PointSegmenter:
    kind, _, source = name.partition(":")
    if kind == "auto":
        found = any((folder / U2NETP.name).is_file() for folder in weights_folders())
        kind = "offline" if found else "grabcut"
    if kind in ("offline", "grabcut"):
        return OfflinePoints(source or None, saliency=kind == "offline")
    sam = FinderSettings(segmenter=name, device=device).load_segmenter()
    if not hasattr(sam, "segment_point"):
        raise UserError(f"{name}: this segmenter takes no points: use a SAM, offline or grabcut")
    return sam  # type: ignore[return-value]


class OfflinePoints:
    """U²-Net-p where the point lies on its object, else GrabCut.

    Args:
        weights: the network's file, None to look for it.
        saliency: whether the network is asked; without it nothing but OpenCV is needed.

    Raises:
        UserError: OpenCV is not installed, or the network cannot be had.
    """

    def __init__(self, weights: str | None = None, saliency: bool = True) -> None:
        self._cv2 = opencv()
        self._network = shared_network(weights) if saliency else None
        self.name = "U2-Net-p and GrabCut" if saliency else "GrabCut"

    def segment_point(self, image: Tensor, point: Point) -> Tensor:
        """See `PointSegmenter.segment_point`."""
        if self._network is not None:
            salient = (self._network.saliency(image) > SALIENT).float()
            if salient[0, point[0], point[1]] > 0:
                return _part_at(largest_parts(salient, least=0.0), point)
        return _part_at(self._by_colour(image, point), point)

    def _by_colour(self, image: Tensor, point: Point) -> Tensor:
        """GrabCut's object [1, H, W] in {0, 1}, from a disc around the point outwards."""
        height, width = image.shape[-2:]

        def start(rows: int, columns: int) -> np.ndarray:
            y, x = np.mgrid[:rows, :columns] + 0.5
            away = np.hypot(y - point[0] * rows / height, x - point[1] * columns / width)
            return _start(self._cv2, away, max(rows, columns))

        return (grabcut(image, start) >= 0.5).float()


def _start(cv2: Any, away: np.ndarray, side: int) -> np.ndarray:
    """GrabCut's first guess: the disc, what is near it, and what is too far away.

    Args:
        cv2: the module.
        away: distance [h,w] from the point, in pixels.
        side: of the image, the longer one.
    """
    state = np.full(away.shape, cv2.GC_PR_BGD, dtype=np.uint8)
    state[away < REACH * side / 2] = cv2.GC_PR_FGD
    state[away > 2 * REACH * side] = cv2.GC_BGD
    state[away <= max(1.0, DISC * side)] = cv2.GC_FGD
    return state


def _part_at(mask: Tensor, point: Point) -> Tensor:
    """The connected part of a mask [1, H, W] at a point, or its nearest one, holes filled."""
    from scipy import ndimage  # seconds of import that other segmenters do without

    labels, count = ndimage.label(mask[0].numpy() > 0)
    if not count:
        return torch.zeros(mask.shape)
    at = labels[point]
    if at == 0:
        nearest = ndimage.distance_transform_edt(labels == 0, False, True)
        at = labels[tuple(nearest[:, point[0], point[1]])]
    return torch.from_numpy(ndimage.binary_fill_holes(labels == at))[None].float()
