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
        self.seen = []

    def losses(self, step):
        self.seen.append(step)
        error = (self.network.weight - 3).square().mean()
        return {"error": error, "steps": torch.tensor(float(step))}

    def train(self, steps, validate=lambda step: {"at": step}, clip=1e9):
        settings = SimpleNamespace(steps=steps, log_every=2, save_every=3, validate_every=4)
        parts = {"network": self.network}
        start = resume(Section(), self.folder, optimizer=self.optimizer, **parts)
        self.scores = train_steps(
            "weight",
            settings,
            self.folder,
            start,
            losses=self.losses,
            optimizer=self.optimizer,
            rates=lambda step: [self.lr],
            rate_key="optim.lr",
            clip=clip,
            validate=validate,
            **parts,
        )
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
    assert run.scores == {"at": 6}
    errors = [row["error"] for row in run.rows if "error" in row]
    assert errors == sorted(errors, reverse=True)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["step"] == 7
    assert state["network"]["weight"].item() == run.network.weight.item()


def test_a_stopped_run_gives_the_same_and_reads_the_rate_anew(tmp_path):
    whole, parts = (tmp_path / name for name in ("whole", "parts"))
    end = Run(whole).train(6)
    Run(parts).train(3)
    second = Run(parts)
    assert second.train(6) == end
    assert second.seen == [3, 4, 5]

    lower = tmp_path / "lower"
    before = Run(lower).train(3)
    assert Run(lower, lr=0.0).train(6) == before  # as the error of a loss that is not finite says


def test_the_gradient_is_clipped_and_every_group_has_its_rate(tmp_path):
    run = Run(tmp_path, lr=0.5)
    before = run.network.weight.item()
    assert run.train(1, clip=0.1) == pytest.approx(before + 0.05)

    weights = [nn.Parameter(torch.zeros(())) for _ in range(2)]
    groups = torch.optim.SGD([{"params": [weight]} for weight in weights], lr=9.0)
    settings = SimpleNamespace(steps=1, log_every=1, save_every=1, validate_every=1)
    given = {"clip": 1e9, "rate_key": "lr", "validate": None, "optimizer": groups}
    resume(Section(), tmp_path / "two")
    train_steps(
        "two",
        settings,
        tmp_path / "two",
        0,
        losses=lambda step: {"loss": weights[0] + weights[1]},
        rates=lambda step: (0.5, 0.25),
        **given,
    )
    assert [weight.item() for weight in weights] == [-0.5, -0.25]


def test_the_mean_of_a_loss_is_over_the_steps_that_have_it(tmp_path):
    run = Run(tmp_path)
    usual = run.losses
    run.losses = lambda step: usual(step) | ({"odd": torch.tensor(2.0)} if step % 2 else {})
    run.train(2)
    assert run.rows[0]["odd"] == 2.0


def test_nothing_to_validate_on(tmp_path):
    run = Run(tmp_path)
    run.train(4, validate=None)
    assert not [row for row in run.rows if "at" in row]
    assert run.scores == {}


def test_a_loss_that_is_not_finite_ends_the_run_before_its_weights_are_lost(tmp_path):
    run = Run(tmp_path)
    run.train(3)
    kept = (tmp_path / "checkpoint.pt").read_bytes()
    run.losses = lambda step: {"error": run.network.weight.sum() * float("nan")}
    with pytest.raises(UserError, match=r"the loss of step 3 is nan: lower optim\.lr and resume"):
        run.train(6)
    assert (tmp_path / "checkpoint.pt").read_bytes() == kept
