"""Continuing with another number of processes: what is restored, what is said."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

STAGES = [1, pytest.param(2, marks=pytest.mark.slow), 3]


def as_if_by_two(runs, name):
    """Makes the newest checkpoint of a run say that two processes wrote it."""
    path = sorted((runs.output(name) / "checkpoints").glob("step-*"))[-1] / "trainer.json"
    state = json.loads(path.read_text())
    state["facts"]["world"] = 2
    path.write_text(json.dumps(state))
    (path.parent / "checksums.json").unlink()
    return path.parent


@pytest.mark.parametrize("stage", STAGES)
def test_experts_step_schedule_and_order_are_restored(runs, capsys, stage):
    rest = [f"train.zero_stage={stage}", "optim.schedule=cosine", "optim.ema=0.7"]
    assert runs("whole", *rest) == 0
    assert runs("run", *rest, "train.save_every=3") == 0
    shutil.rmtree(runs.output("run") / "checkpoints" / "step-000006")
    folder = as_if_by_two(runs, "run")
    shutil.rmtree(folder / "engine")  # of which nothing is read
    capsys.readouterr()
    assert runs("run", *rest) == 0
    said = capsys.readouterr().out
    assert "which 2 processes wrote, with 1" in said
    assert "moments are not, they start from zero" in said
    whole, run = runs.losses("whole"), runs.losses("run")
    assert [row["step"] for row in run] == [1, 2, 3, 4, 5, 6]
    assert [row["lr"] for row in run] == [row["lr"] for row in whole]
    assert run[3]["flow"] == whole[3]["flow"]  # the same weights, samples and noise
    assert run[4]["flow"] != whole[4]["flow"]  # Adam's first step is a larger one
    last = load_file(runs.output("run") / "checkpoints" / "step-000006" / "average.safetensors")
    raw = load_file(runs.output("run") / "checkpoints" / "step-000006" / "adapters.safetensors")
    assert any(not torch.equal(last[name], raw[name]) for name in last)
    assert json.loads((runs.output("run") / "run.json").read_text())["steps"] == 6


def test_checkpoints_from_before_are_refused_as_before(runs, capsys):
    rest = ["train.zero_stage=1", "train.steps=2"]
    assert runs("run", *rest) == 0
    (as_if_by_two(runs, "run") / "adapters.safetensors").unlink()
    capsys.readouterr()
    assert runs("run", *rest, "train.steps=3") == 2
    assert "continue with 2 processes instead of 1" in capsys.readouterr().err


def test_without_zero_nothing_is_lost(runs, capsys):
    assert runs("whole") == 0
    assert runs("run", "train.steps=3") == 0
    as_if_by_two(runs, "run")
    capsys.readouterr()
    assert runs("run") == 0
    assert "start from zero" not in capsys.readouterr().out
    assert runs.difference("whole", "run") == 0
