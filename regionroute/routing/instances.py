"""Instances: which of several objects of one word is edited.

The gates of a word are open on all objects that it names. Its instances are the connected
components of the gates; two that touch on the token grid are one.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from regionroute.config.choices import Instance

_AROUND = np.ones((3, 3))  # 8-connectivity


def choose_instances(gates: Tensor, which: Instance) -> tuple[Tensor, Tensor]:
    """Select the part of each gate that belongs to one instance.

    Args:
        gates: [B,S,h,w] in [0,1].
        which: "all" keeps the gates as they are.

    Returns:
        Factors for the gates in {0,1}, [B,S,h,w]: 1 where a token is nearer to the chosen
        component than to the others, everywhere if there is only one; and the number of
        components, long [B,S].
    """
    keep, counts = torch.ones_like(gates), torch.zeros(gates.shape[:2], dtype=torch.long)
    for b, s in np.ndindex(*counts.shape):
        gate = gates[b, s].float().cpu().numpy()
        parts, count = ndimage.label(gate > 0.5, _AROUND)
        counts[b, s] = count
        if which != "all" and count > 1:
            chosen = _best(gate, parts, count, which)
            nearest = ndimage.distance_transform_edt(
                parts == 0, return_distances=False, return_indices=True
            )
            mine = parts[tuple(nearest)] == chosen
            keep[b, s] = torch.from_numpy(mine).to(keep)
    return keep, counts


def _best(gate: np.ndarray, parts: np.ndarray, count: int, which: Instance) -> int:
    """Number of the chosen component; the first of equals."""
    numbers = range(1, count + 1)
    if which == "largest":
        return max(numbers, key=lambda number: gate[parts == number].sum())
    middles = ndimage.center_of_mass(gate, parts, list(numbers))
    axis = 0 if which in ("topmost", "bottommost") else 1
    sign = -1 if which in ("rightmost", "bottommost") else 1
    return min(numbers, key=lambda number: sign * middles[number - 1][axis])
