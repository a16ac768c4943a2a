"""GrabCut (Rother et al., 2004): an object parted from its surroundings by colour, by OpenCV."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from regionroute.data.images import to_pil
from regionroute.errors import UserError

WORKING_SIDE = 256  # pixels of the longer side at which it works
ROUNDS = 5


def grabcut(image: Tensor, start: Callable[[int, int], np.ndarray]) -> Tensor:
    """Cut out an object, given a first guess.

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
    scale = min(1.0, WORKING_SIDE / max(height, width))
    size = (max(8, round(width * scale)), max(8, round(height * scale)))
    pixels = np.asarray(to_pil(image).resize(size, Image.Resampling.BOX))[..., ::-1].copy()
    state = start(size[1], size[0])
    if 0 < _inside(cv2, state).sum() < state.size:
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.setRNGSeed(0)  # its colour clusters start at random
        cv2.grabCut(pixels, state, None, *models, ROUNDS, cv2.GC_INIT_WITH_MASK)
    found = torch.from_numpy(_inside(cv2, state).astype(np.float32))
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


def _inside(cv2: Any, state: np.ndarray) -> np.ndarray:
    return np.isin(state, (cv2.GC_FGD, cv2.GC_PR_FGD))
