"""Filters of objects and samples, with reasons, and near-duplicates among photos."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from regionroute.data.images import to_pil
from regionroute.data.manifest import mask_box
from regionroute.errors import UserError

_HASH_SIDE = 16  # a perceptual hash has 16 x 16 bits
_EDGE_BLURS = (0.004, 0.012)  # of the shorter side: how far edges may move in a style


@dataclass(frozen=True)
class Limits:
    """Objects and samples beyond these limits are rejected.

    Attributes:
        min_area: minimum area of an object, as a fraction of the image.
        max_area: maximum area.
        max_border: maximum fraction of the image border that an object may cover; masks that touch
            most of it are usually background.
        min_score: minimum confidence of a mask that was found.
        min_strength: minimum mean change of the pixels inside the mask, 0 to 1; below it the style
            is not visible.
        min_structure: minimum correlation of edges or tones, whichever is higher, inside the mask
            before and after, -1 to 1; below it the object is no longer recognisable.
        max_alike: bits of 256 in which near-duplicates may differ; -1 keeps all photos.
    """

    min_area: float = 0.01
    max_area: float = 0.70
    max_border: float = 0.60
    min_score: float = 0.30
    min_strength: float = 0.04
    min_structure: float = 0.08
    max_alike: int = 12

    def __post_init__(self) -> None:
        for low, high in (("min_area", "max_area"),):
            if not 0 <= getattr(self, low) <= getattr(self, high) <= 1:
                raise UserError(f"{low} and {high} must satisfy 0 <= {low} <= {high} <= 1")
        for name in ("max_border", "min_score", "min_strength"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}: use 0 to 1")
        if not -1 <= self.min_structure <= 1:
            raise UserError(f"min_structure is {self.min_structure}: use -1 to 1")
        if not -1 <= self.max_alike <= _HASH_SIDE**2:
            raise UserError(f"max_alike is {self.max_alike}: use -1 to {_HASH_SIDE**2}")


def object_checks(mask: Tensor, score: float) -> dict[str, float]:
    """Measure an object by its mask [1, H, W] in {0, 1} and the mask's score."""
    frame = torch.cat([mask[0, 0], mask[0, -1], mask[0, 1:-1, 0], mask[0, 1:-1, -1]])
    return {
        "area": round(float(mask.mean()), 4),
        "border": round(float(frame.mean()), 4),
        "score": round(score, 4),
    }


def sample_checks(context: Tensor, target: Tensor, mask: Tensor) -> dict[str, float]:
    """Measure a sample: images [3, H, W] in [0, 1], a mask [1, H, W] in {0, 1}.

    Returns:
        "strength": mean absolute change inside the mask; "structure": the highest of three
        correlations inside it: of edge strength at two scales, and of tones. Drawings keep edges;
        paintings whose strokes hide them keep tones.
    """
    reaches = [max(1, round(blur * min(mask.shape[-2:]))) for blur in _EDGE_BLURS]
    context, target, mask = _around((context, target, mask), 2 * max(reaches) + 1)
    inside = mask[0] > 0
    change = (target - context).abs().mean(0)[inside]
    views = [(context.mean(0), target.mean(0))]
    views += [(_edges(context, reach), _edges(target, reach)) for reach in reaches]
    kept = max(_correlation(before[inside], after[inside]) for before, after in views)
    return {"strength": round(float(change.mean()), 4), "structure": round(kept, 4)}


def _around(images: tuple[Tensor, Tensor, Tensor], rim: int) -> list[Tensor]:
    """Crops around the object, wide enough that measurements inside it do not change."""
    y0, x0, y1, x1 = mask_box(images[-1])
    top, left = max(0, y0 - rim), max(0, x0 - rim)
    return [image[:, top : y1 + rim, left : x1 + rim] for image in images]


def object_fault(checks: Mapping[str, float], word: str, limits: Limits) -> str | None:
    """Why an object is rejected, as text that follows the photo's name; None: it is not."""
    if not limits.min_area <= checks["area"] <= limits.max_area:
        return (
            f"the {word} covers {checks['area']:.1%} of the image, the limits are "
            f"{limits.min_area:.0%} to {limits.max_area:.0%}"
        )
    if checks["border"] > limits.max_border:
        return (
            f"the {word} covers {checks['border']:.0%} of the image border, the limit is "
            f"{limits.max_border:.0%}"
        )
    if checks["score"] < limits.min_score:
        return (
            f"the mask of the {word} has a score of {checks['score']:.2f}, the minimum is "
            f"{limits.min_score:.2f}"
        )
    return None


def sample_fault(checks: Mapping[str, float], word: str, style: str, limits: Limits) -> str | None:
    """Why a sample is rejected, as text that follows the photo's name; None: it is not."""
    if checks["strength"] < limits.min_strength:
        return (
            f"{style} changes the {word} by only {checks['strength']:.3f}, the minimum is "
            f"{limits.min_strength:.3f}"
        )
    if checks["structure"] < limits.min_structure:
        return (
            f"{style} keeps too little of the {word}'s shape (correlation "
            f"{checks['structure']:.2f}, the minimum is {limits.min_structure:.2f})"
        )
    return None


def perceptual_hash(image: Tensor) -> str:
    """Perceptual hash of a photo [3, H, W]: 256 bits as hexadecimal digits.

    A difference hash: whether each cell of a 16 x 16 grid is lighter than its right neighbour. It
    does not change with scaling, compression and small changes of colour.
    """
    size = (_HASH_SIDE + 1, _HASH_SIDE)
    grey = to_pil(image).convert("L").resize(size, Image.Resampling.BOX)
    cells = np.asarray(grey, dtype=np.int16)
    bits = (cells[:, 1:] > cells[:, :-1]).ravel()
    return np.packbits(bits).tobytes().hex()


def first_alike(look: str, others: Sequence[str], most: int) -> int | None:
    """Index of the first other hash that differs in at most `most` bits, None if there is none."""
    if not others or most < 0:
        return None
    mine = np.frombuffer(bytes.fromhex(look), dtype=np.uint8)
    theirs = np.frombuffer(bytes.fromhex("".join(others)), dtype=np.uint8).reshape(len(others), -1)
    near = np.flatnonzero(np.bitwise_count(mine ^ theirs).sum(1) <= most)
    return int(near[0]) if len(near) else None


def _edges(image: Tensor, reach: int) -> Tensor:
    """Edge strength [H, W] of an image [3, H, W], blurred over `reach` pixels either way."""
    grey = F.pad(image.mean(0)[None, None], (1, 1, 1, 1), mode="replicate")
    dx = grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2]
    dy = grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1]
    strength = (dx.square() + dy.square()).sqrt()
    for _ in range(2):  # two box filters approximate a Gaussian
        padded = F.pad(strength, (reach,) * 4, mode="replicate")
        strength = F.avg_pool2d(padded, 2 * reach + 1, stride=1)
    return strength[0, 0]


def _correlation(a: Tensor, b: Tensor) -> float:
    """Pearson correlation, 0 if either is constant."""
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    norm = float(a.norm() * b.norm())
    return float((a * b).sum()) / norm if norm > 1e-9 else 0.0
