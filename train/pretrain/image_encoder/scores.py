"""How well an image encoder finds the named object."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from train.pretrain.image_encoder.views import Views

ScoreWords = Callable[[Views, int, Sequence[str]], Tensor]  # logits [N,h,w] of words in an image
ABSENT_WORDS = 8  # per image, for the AUC
THRESHOLD = 0.5  # of the sigmoid of a score


def localisation(views: Views, vocabulary: Sequence[str], score: ScoreWords) -> dict[str, float]:
    """Means over all objects of the images.

    Args:
        views: images set aside from training.
        vocabulary: words to draw absent ones from.
        score: of words in an image.

    Returns:
        iou: of the map above `THRESHOLD` with the object; peak: fraction whose largest score lies
        on the object; overlap: IoU of the maps of two words of an image; auc: that a present word's
        largest score exceeds an absent one's.
    """
    generator = torch.Generator().manual_seed(0)
    ious, peaks, overlaps, present, absent = [], [], [], [], []
    for image, words in enumerate(views.words):
        if not words:
            continue
        others = [word for word in vocabulary if word not in words]
        drawn = torch.randperm(len(others), generator=generator)[:ABSENT_WORDS].tolist()
        maps = score(views, image, [*words, *(others[number] for number in drawn)]).sigmoid()
        best = maps.flatten(1).amax(1)
        present += best[: len(words)].tolist()
        absent += best[len(words) :].tolist()
        found, masks = maps[: len(words)] > THRESHOLD, views.mask(image)
        ious += iou(found, masks > 0.5).tolist()
        at = maps[: len(words)].flatten(1).argmax(1, keepdim=True)
        peaks += (masks.flatten(1).gather(1, at) > 0.25).flatten().tolist()
        if len(words) > 1:
            overlaps.append(float(iou(found[0], found[1])))
    return {
        "iou": _mean(ious),
        "peak": _mean(peaks),
        "overlap": _mean(overlaps),
        "auc": auc(torch.tensor(present), torch.tensor(absent)),
    }


def iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU [...] of regions bool [...,h,w]; 0 for two empty ones."""
    both, either = (a & b).flatten(-2).sum(-1), (a | b).flatten(-2).sum(-1)
    return both / either.clamp(min=1)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def auc(positive: Tensor, negative: Tensor) -> float:
    """Fraction of pairs in which the positive is larger, ties count half."""
    difference = positive[:, None] - negative
    return float(((difference > 0).float() + 0.5 * (difference == 0).float()).mean())
