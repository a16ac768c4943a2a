"""The loop of trainings in one process, on a line through two points."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from regionroute.config.base import Section
from regionroute.errors import UserError
from train.engine.loop import train_steps
from train.engine.single_process import resume


class Run:
    """A weight that is to become 3; its second loss is the number of the step."""

    def __init__(self, folder, lr=0.1):
        self.folder, self.lr = folder, lr
        torch.manual_seed(0)
        self.network = nn.Linear(1, 1, bias=False)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=9.0)

    def losses(self, step):
        error = (self.network.weight - 3).square().mean()
        return {"error": error, "steps": torch.tensor(float(step))}

    def train(self, steps, validate=lambda step: {"at": step}, **more):
        settings = SimpleNamespace(steps=steps, log_every=2, save_every=3, validate_every=4)
        parts = {"network": self.network}
        start = resume(Section(), self.folder, optimizer=self.optimizer, **parts)
        rates = lambda step: [self.lr]  # noqa: E731
        given = (start, self.losses, self.optimizer, rates, "optim.lr", 1e9, validate)
        train_steps("weight", settings, self.folder, *given, **parts)
        return self.network.weight.item()

    @property
    def rows(self):
        return [json.loads(row) for row in (self.folder / "log.jsonl").read_text().splitlines()]


def test_it_logs_means_validates_and_saves_at_its_end(tmp_path):
    run = Run(tmp_path)
    assert run.train(7) == pytest.approx(3, abs=1)
    steps = {row["step"]: row["steps"] for row in run.rows if "steps" in row}
    assert steps == {2: 0.5, 4: 2.5, 6: 4.5}
    assert [row["at"] for row in run.rows if "at" in row] == [3, 6]  # after steps 4 and 7
    errors = [row["error"] for row in run.rows if "error" in row]
    assert errors == sorted(errors, reverse=True)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["step"] == 7
    assert state["network"]["weight"].item() == run.network.weight.item()


def test_a_stopped_run_gives_the_same_and_reads_the_rate_anew(tmp_path):
    whole, parts = (tmp_path / name for name in ("whole", "parts"))
    end = Run(whole).train(6)
    Run(parts).train(3)
    assert Run(parts).train(6) == end

    lower = tmp_path / "lower"
    before = Run(lower).train(3)
    assert Run(lower, lr=0.0).train(6) == before  # as the error of a loss that is not finite says


def test_nothing_to_validate_on(tmp_path):
    run = Run(tmp_path)
    run.train(4, validate=None)
    assert not [row for row in run.rows if "at" in row]


def test_a_loss_that_is_not_finite_ends_the_run_before_its_weights_are_lost(tmp_path):
    run = Run(tmp_path)
    run.train(3)
    kept = (tmp_path / "checkpoint.pt").read_bytes()
    run.losses = lambda step: {"error": run.network.weight.sum() * float("nan")}
    with pytest.raises(UserError, match=r"the loss of step 3 is nan: lower optim\.lr and resume"):
        run.train(6)
    assert (tmp_path / "checkpoint.pt").read_bytes() == kept
