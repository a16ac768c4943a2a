"""What counts as a loss spike, and what a run does then."""

import json
import random
import re

import pytest

from regionroute.config.run import TrainConfig
from train.monitor.loss_spike import FLOOR, LEAST, WINDOW, LossSpikeGuard
from train.step import StepLosses


def warmed(times, losses):
    guard = LossSpikeGuard(times)
    assert all(guard.accept(loss) for loss in losses)
    return guard


def test_the_limit_is_the_median_and_its_deviations():
    losses = [1.0, 2.0, 3.0, 4.0, 5.0] * 10  # median 3, deviations 2 1 0 1 2: median 1
    guard = warmed(10, losses)
    assert guard.limit() == 13
    assert guard.accept(12.9)
    assert not warmed(10, losses).accept(13.1)


def test_an_outlier_moves_no_limit_and_a_refused_one_does_not_count():
    guard = warmed(10, [1.0, 2.0, 3.0, 4.0, 5.0] * 10)
    before = guard.limit()
    assert not guard.accept(1e9)
    assert guard.limit() == before


def test_equal_losses_have_a_least_deviation():
    guard = warmed(10, [2.0] * LEAST)
    assert guard.limit() == pytest.approx(2 + 10 * FLOOR * 2)


def test_too_few_steps_say_nothing_and_zero_never_does():
    guard = warmed(10, [1.0] * (LEAST - 1))
    assert guard.limit() is None
    assert guard.accept(1e9)
    assert warmed(0, [1.0] * WINDOW).accept(1e9)


def test_old_steps_are_forgotten():
    guard = warmed(10, [1.0 + i % 3 for i in range(WINDOW)])
    assert guard.limit() < 15
    assert all(guard.accept(10 + 0.01 * step) for step in range(WINDOW))  # a slow change is none
    assert guard.limit() == pytest.approx(10.495 + 10 * 0.25)


def test_the_usual_noise_of_losses_never_stops_a_run():
    """Log-normal losses as noise levels make them, over many steps of several runs."""
    for seed in range(4):
        draw = random.Random(seed)
        guard = LossSpikeGuard(TrainConfig().loss_spike)
        assert all(guard.accept(draw.lognormvariate(0, 0.6)) for _ in range(3000))


def test_a_run_stops_at_a_loss_spike_and_names_the_batch(runs, monkeypatch, capsys):
    monkeypatch.setattr("train.monitor.loss_spike.LEAST", 3)
    rest = ["train.save_every=1", "train.loss_spike=5", "optim.clip=0"]
    assert runs("run", *rest, "train.steps=4", "optim.lr=1e-6") == 0
    rows, steps = StepLosses.rows, iter(range(5, 13))

    def spiking(self):
        table = rows(self)
        if next(steps) == 9:
            table[0, StepLosses.NAMES.index("total")] *= 1e4
        return table

    capsys.readouterr()
    monkeypatch.setattr(StepLosses, "rows", spiking)
    assert runs("run", *rest, "train.steps=12", "optim.lr=1e-6") == 2
    error = capsys.readouterr().err
    assert re.search(r"loss spike: \S+ exceeds the limit of \S+ \(train", error)
    assert "(train.loss_spike) at step 9" in error
    assert "step-000008 is intact" in error
    bad = json.loads((runs.output("run") / "bad_batch.json").read_text())
    assert (bad["step"], sum(sample["bad"] for sample in bad["samples"])) == (9, 1)
    assert runs.checkpoints("run")[-1] == "step-000008"
