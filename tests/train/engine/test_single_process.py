import pytest

from train.engine.single_process import warm_cosine


def test_the_rate_rises_and_falls():
    rates = [warm_cosine(step, 10, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1, rel=1e-3)
    assert max(rates) == rates[9]
    assert rates[-1] < 0.02
