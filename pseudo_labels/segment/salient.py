"""U²-Net-p: the one salient object of an image, by a network of 4.6 MB that runs anywhere.

The network is that of `rembg` (Qin et al., U²-Net, 2020; Apache-2.0), run by onnxruntime with its
preprocessing; the file is found where rembg keeps it.
"""

import functools
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pseudo_labels.segment import Detection
from pseudo_labels.segment.weights import WeightsFile, find_weights, onnx_session
from regionroute.data.images import to_pil
from regionroute.data.manifest import mask_box
from regionroute.errors import UserError

U2NETP = WeightsFile(
    "u2netp.onnx",
    "https://github.com/danielgatis/rembg/releases/download/v0.0.0/u2netp.onnx",
    "8e83ca70e441ab06c318d82300c84806",
)
SIDE = 320
_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)
_ISLAND = 0.08  # parts smaller than this share of the largest are dirt


class SalientNetwork:
    """Saliency of an image's pixels.

    Args:
        weights: the network's file, None to look for it and fetch it if it is nowhere.

    Raises:
        UserError: it cannot be found or loaded.
    """

    def __init__(self, weights: str | None = None) -> None:
        self.path = find_weights(U2NETP, weights)
        onnx_session(self.path)

    def saliency(self, image: Tensor) -> Tensor:
        """Image [3, H, W] in [0, 1] to probabilities [1, H, W], scaled up from 320 px."""
        picture = to_pil(image).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        array = np.asarray(picture, dtype=np.float32)
        array = (array / max(float(array.max()), 1e-6) - _MEAN) / _STD
        session = onnx_session(self.path)
        name = session.get_inputs()[0].name
        (answer, *_) = session.run(None, {name: array.transpose(2, 0, 1)[None]})
        small = torch.from_numpy(np.ascontiguousarray(answer[:1, :1]))
        size = (image.shape[-2], image.shape[-1])
        return F.interpolate(small, size, mode="bilinear", antialias=True)[0].clamp(0, 1)


class SalientGrounder:
    """Takes the salient object for the word: for photos that show one object each.

    It knows no words. Asked for several words it finds none of them, as it could not tell which
    is which.
    """

    name = "u2netp"
    masks = True

    def __init__(self, weights: str | None = None) -> None:
        self._network = SalientNetwork(weights)

    def ground(self, image: Tensor, words: Sequence[str]) -> list[list[Detection]]:
        """See `Grounder.ground`."""
        if len(words) != 1:
            raise UserError(
                "the salient object of a photo has one word: give one word in --objects, or a "
                "grounder that knows words"
            )
        probability = self._network.saliency(image)
        mask = largest_parts(probability > 0.5)
        if not mask.any():
            return [[]]
        score = float(probability[mask > 0].mean())
        return [[Detection(mask_box(mask), score, mask)]]


def largest_parts(mask: Tensor, least: float = _ISLAND) -> Tensor:
    """The largest connected part and all of at least `least` of its size, their holes filled.

    Args:
        mask: [1, H, W], bool or {0, 1}.
        least: share of the largest part's area.

    Returns:
        Float mask [1, H, W] in {0, 1}.
    """
    from scipy import ndimage  # seconds of import that other segmenters do without

    labels, count = ndimage.label(mask[0].bool().numpy(), structure=np.ones((3, 3)))
    if not count:
        return torch.zeros(mask.shape)
    sizes = np.bincount(labels.ravel())[1:]
    kept = np.isin(labels, 1 + np.flatnonzero(sizes >= least * sizes.max()))
    holes = ndimage.binary_fill_holes(kept) & ~kept
    hole_labels, holes_found = ndimage.label(holes)
    if holes_found:  # large holes, such as a cup's handle, stay
        areas = np.bincount(hole_labels.ravel())
        small = np.flatnonzero(areas < 0.01 * kept.sum())
        kept |= holes & np.isin(hole_labels, small)
    return torch.from_numpy(kept)[None].float()


@functools.cache
def shared_network(weights: str | None) -> SalientNetwork:
    """One network a process for all that use it."""
    return SalientNetwork(weights)
