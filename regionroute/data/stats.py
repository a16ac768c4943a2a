"""Means with intervals, and differences between methods on the same samples.

Intervals are percentile bootstrap intervals over samples, seeded, so a second run prints the same
numbers. Values that are not finite are left out and counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
_CHUNK = 4_000_000  # drawn indices held at a time


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval; all None where there is no valid value.

    Attributes:
        mean: over the valid values.
        std: standard deviation of the values (not of the mean).
        low: lower end of the interval, None for fewer than two values.
        high: upper end.
        n: valid values.
        n_invalid: values that were NaN or infinite.
    """

    mean: float | None
    std: float | None
    low: float | None
    high: float | None
    n: int
    n_invalid: int


@dataclass(frozen=True)
class Paired:
    """Method a against method b on the samples both have.

    Attributes:
        difference: mean of a − b.
        low: lower end of its interval, None for fewer than two pairs.
        high: upper end.
        n: pairs.
        win_rate: share of pairs in which a is better, ties counted half.
        ties: pairs with equal values.
    """

    difference: float | None
    low: float | None
    high: float | None
    n: int
    win_rate: float | None
    ties: int


def bootstrap(values: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Means of R = `RESAMPLES` draws with replacement.

    Args:
        values: [N] or [N,K]; with K columns the same draw is used for all.
        seed: of the draws.

    Returns:
        [R] or [R,K].
    """
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // len(values))
    parts = [
        values[rng.integers(0, len(values), (min(step, RESAMPLES - start), len(values)))].mean(1)
        for start in range(0, RESAMPLES, step)
    ]
    return np.concatenate(parts)


def describe(values: Sequence[float] | np.ndarray, *, seed: int = 0) -> Estimate:
    """Mean of `values` [N] with its 95 % interval."""
    array = np.asarray(values, dtype=np.float64)
    valid = array[np.isfinite(array)]
    invalid = len(array) - len(valid)
    if not len(valid):
        return Estimate(None, None, None, None, 0, invalid)
    low, high = _interval(valid, seed)
    return Estimate(float(valid.mean()), float(valid.std()), low, high, len(valid), invalid)


def paired(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    *,
    higher_is_better: bool,
    seed: int = 0,
) -> Paired:
    """Compares two methods' values [N] of the same samples; pairs with a NaN are left out.

    Raises:
        ValueError: the lengths differ.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"{len(first)} values against {len(second)}")
    difference = first - second
    difference = difference[np.isfinite(difference)]
    if not len(difference):
        return Paired(None, None, None, 0, None, 0)
    low, high = _interval(difference, seed)
    better = difference > 0 if higher_is_better else difference < 0
    ties = int((difference == 0).sum())
    win_rate = float((better.sum() + ties / 2) / len(difference))
    return Paired(float(difference.mean()), low, high, len(difference), win_rate, ties)


def ratio_of_means(
    numerator: Sequence[float] | np.ndarray,
    denominator: Sequence[float] | np.ndarray,
    *,
    seed: int = 0,
) -> Estimate:
    """Mean of one quantity over the mean of another on the same samples [N], with its interval.

    Unlike the mean of ratios it is not swayed by samples whose denominator is nearly zero. `std`
    is None.

    Raises:
        ValueError: the lengths differ.
    """
    both = np.stack([np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)], 1)
    valid = both[np.isfinite(both).all(1)]
    invalid = len(both) - len(valid)
    if not len(valid) or valid[:, 1].mean() == 0:
        return Estimate(None, None, None, None, 0, invalid)
    mean = float(valid[:, 0].mean() / valid[:, 1].mean())
    if len(valid) < 2:
        return Estimate(mean, None, None, None, len(valid), invalid)
    draws = bootstrap(valid, seed=seed)
    ratios = draws[:, 0] / np.where(draws[:, 1] == 0, np.nan, draws[:, 1])
    low, high = _quantiles(ratios)
    return Estimate(mean, None, low, high, len(valid), invalid)


def _interval(valid: np.ndarray, seed: int) -> tuple[float | None, float | None]:
    if len(valid) < 2:
        return None, None
    return _quantiles(bootstrap(valid, seed=seed))


def _quantiles(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.nanquantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
