import numpy as np
import pytest

from regionroute.data.stats import RESAMPLES, bootstrap, describe, paired, ratio_of_means


@pytest.fixture
def values():
    return np.random.default_rng(1).normal(3, 2, 200)


def test_mean_and_interval_as_scipy_has_them(values):
    from scipy.stats import bootstrap as reference

    estimate = describe(values)
    assert estimate.mean == pytest.approx(values.mean())
    assert estimate.std == pytest.approx(values.std())
    interval = reference(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(5)
    ).confidence_interval
    # Two random draws of the same interval: equal to a fraction of its width.
    assert estimate.low == pytest.approx(interval.low, abs=0.04)
    assert estimate.high == pytest.approx(interval.high, abs=0.04)


def test_chunks_are_one_sequence_of_draws(values, monkeypatch):
    whole = bootstrap(values)
    monkeypatch.setattr("regionroute.data.stats._CHUNK", 200 * 100)
    chunked = bootstrap(values)
    assert whole.shape == chunked.shape == (RESAMPLES,)
    np.testing.assert_allclose(whole, chunked)


def test_the_same_seed_gives_the_same_interval(values):
    assert describe(values, seed=3) == describe(values, seed=3)
    assert describe(values, seed=3).low != describe(values, seed=4).low


def test_invalid_values_are_left_out_and_counted():
    estimate = describe([1.0, np.nan, 3.0, np.inf])
    assert (estimate.mean, estimate.n, estimate.n_invalid) == (2.0, 2, 2)


def test_too_few_values_have_no_interval():
    assert describe([4.0]).low is None
    assert describe([4.0]).mean == 4.0
    nothing = describe([np.nan])
    assert (nothing.mean, nothing.n, nothing.n_invalid) == (None, 0, 1)
    assert describe([]).n_invalid == 0


def test_pairs_see_a_difference_that_single_intervals_hide(values):
    better = values - 0.1 - 0.05 * np.abs(np.sin(values))
    a, b = describe(better), describe(values)
    assert a.high > b.low  # the intervals overlap
    result = paired(better, values, higher_is_better=False)
    assert result.high < 0
    assert result.win_rate == 1
    assert paired(better, values, higher_is_better=True).win_rate == 0


def test_ties_count_half_and_nan_pairs_not_at_all():
    result = paired([1, 2, 3, np.nan, 5], [1, 1, 4, 0, np.nan], higher_is_better=True)
    assert (result.n, result.ties) == (3, 1)
    assert result.win_rate == pytest.approx(0.5)
    assert result.difference == pytest.approx(0)
    assert paired([np.nan], [1.0], higher_is_better=True).n == 0
    with pytest.raises(ValueError, match="against"):
        paired([1.0], [1.0, 2.0], higher_is_better=True)


def test_ratio_of_means_is_not_swayed_by_a_tiny_denominator():
    top, bottom = np.array([1.0, 2.0, 0.5]), np.array([4.0, 8.0, 1e-6])
    estimate = ratio_of_means(top, bottom)
    assert estimate.mean == pytest.approx(3.5 / 12, rel=1e-6)
    assert np.mean(top / bottom) > 1000
    assert ratio_of_means([1.0], [0.0]).mean is None
    assert ratio_of_means([1.0, np.nan], [2.0, 1.0]).n_invalid == 1


def test_proportional_quantities_have_a_ratio_without_spread(values):
    estimate = ratio_of_means(np.abs(values) * 0.25, np.abs(values))
    assert (estimate.low, estimate.high) == pytest.approx((0.25, 0.25))
