"""Scores of preview edits against exact targets: no network, so they cost nothing.

The same numbers as in the report of ``eval/rses.py``, which training may not import.
"""

from __future__ import annotations

import torch
from torch import Tensor


def edit_scores(edits: Tensor, sources: Tensor, targets: Tensor, masks: Tensor) -> dict[str, float]:
    """How much of the change was made on the object, and how much beside it.

    Args:
        edits: [B,3,H,W] in [0,1].
        sources: unedited, [B,3,H,W].
        targets: exact, [B,3,H,W].
        masks: 1 on the object, [B,1,H,W] in {0,1}.

    Returns:
        Means over the samples that have them: "error_left", mean squared error on the object
        over that of the unedited picture (0: exact, 1: as no edit); "background_error", mean
        squared error against the source outside the object, pictures in [-1,1].
    """
    unedited = _error(sources, targets, masks)
    left = torch.where(unedited > 0, _error(edits, targets, masks) / unedited, torch.nan)
    numbers = {
        "error_left": float(left.nanmean()),
        "background_error": float(_error(edits, sources, 1 - masks).nanmean()),
    }
    return {name: value for name, value in numbers.items() if value == value}  # no NaN


def _error(pictures: Tensor, others: Tensor, masks: Tensor) -> Tensor:
    """Σ M (2a−2b)² / (3 ΣM): [B], NaN where M is empty."""
    error = ((2 * (pictures - others)).square() * masks).sum((1, 2, 3))
    return error / (3 * masks.sum((1, 2, 3)))
