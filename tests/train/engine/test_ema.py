"""The moving average of the experts: its formula, at every ZeRO stage, through checkpoints."""

import shutil
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file

from regionroute.adapters import read_registry
from train.engine.ema import MovingAverage
from train.trainer import Trainer

AVERAGE = "average.safetensors"
ADAPTERS = "adapters.safetensors"
SLOW = pytest.mark.slow
STAGES = [0, pytest.param(1, marks=SLOW), pytest.param(2, marks=SLOW), 3]


class Weights(torch.nn.Module):
    """One trained weight under the name by which adapters are found."""

    def __init__(self, values):
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(values))


@pytest.fixture
def one_weight(monkeypatch):
    module = Weights([1.0, 2.0])
    monkeypatch.setattr("train.engine.weights.adapter_parameters", lambda model: [model.value])
    return module


def test_the_average_follows_the_weights_as_the_formula_says(one_weight):
    average = MovingAverage(one_weight, 0.5)
    expected = one_weight.value.detach().clone()
    for step in range(12):
        with torch.no_grad():
            one_weight.value += step
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected += (1 - decay) * (one_weight.value.detach() - expected)
    now = one_weight.value.detach().clone()
    with average.applied():
        torch.testing.assert_close(one_weight.value.detach(), expected)
        assert not torch.equal(one_weight.value, now)
    assert torch.equal(one_weight.value, now)


def test_the_weights_come_back_after_an_error(one_weight):
    average = MovingAverage(one_weight, 0.9)
    with torch.no_grad():
        one_weight.value.mul_(3)
    with suppress(KeyError), average.applied():
        assert one_weight.value.tolist() == [1.0, 2.0]
        raise KeyError
    assert one_weight.value.tolist() == [3.0, 6.0]


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_exports_the_average_and_continues_it_bit_for_bit(runs, monkeypatch, stage):
    rest = ["optim.ema=0.8", f"train.zero_stage={stage}", "train.save_every=3", "train.keep=9"]
    rest += ["train.preview_every=2", "train.validate_every=2"]
    assert runs("plain", *rest, "optim.ema=0", "train.preview_every=0") == 0
    assert runs("whole", *rest) == 0
    assert runs.difference("plain", "whole") == 0  # averaging changes no training
    whole = runs.output("whole")
    raw, average = (load_file(whole / "checkpoints/step-000006" / n) for n in (ADAPTERS, AVERAGE))
    assert raw.keys() == average.keys()
    assert any(not torch.equal(raw[name], average[name]) for name in raw)
    registry = read_registry(whole / "experts")
    assert registry.extra["averaged"] == 0.8
    assert "moving average, decay 0.8" in (whole / "experts" / "README.md").read_text()
    exported = runs.experts("whole")
    name = next(name for name in average if name.endswith("lora_B"))
    index = [style.name for style in registry.styles].index("pixel-art")
    place = name.removesuffix("lora_B").rstrip(".")
    assert torch.equal(exported[f"transformer.{place}.lora_B.weight"], average[name][index])

    shutil.copytree(whole, runs.output("halves"))
    shutil.rmtree(runs.output("halves") / "checkpoints" / "step-000006")
    assert runs("halves", *rest) == 0
    assert runs.difference("whole", "halves") == 0
    again = load_file(runs.output("halves") / "checkpoints/step-000006" / AVERAGE)
    assert all(torch.equal(average[name], again[name]) for name in average)
    assert all(torch.equal(exported[k], v) for k, v in runs.experts("halves").items())


def test_an_average_may_begin_in_the_middle(runs, capsys):
    assert runs("run", "train.steps=3") == 0
    capsys.readouterr()
    assert runs("run", "optim.ema=0.9") == 0
    assert (
        "has no moving average: it begins with the experts as they are" in capsys.readouterr().out
    )
    assert (runs.output("run") / "checkpoints/step-000006" / AVERAGE).is_file()


@pytest.mark.parametrize("name", [AVERAGE, ADAPTERS])
def test_a_damaged_file_is_named(runs, capsys, name):
    rest = ["optim.ema=0.9", "train.steps=2"]
    assert runs("run", *rest) == 0
    path = runs.output("run") / "checkpoints/step-000002" / name
    path.write_bytes(path.read_bytes()[:100])
    (path.parent / "checksums.json").unlink()  # as in checkpoints of earlier versions
    capsys.readouterr()
    assert runs("run", *rest, "train.steps=3") == 2
    assert f"{name}: these weights cannot be read" in capsys.readouterr().err


def test_previews_and_validation_see_the_average(runs, monkeypatch):
    seen = []
    original = Trainer._validate

    def validate(self, validation, step):
        live = [part.clone() for part in self.average._own()]
        seen.append(all(map(torch.equal, live, self.average._average)))
        original(self, validation, step)

    monkeypatch.setattr(Trainer, "_validate", validate)
    assert runs("run", "optim.ema=0.9", "train.validate_every=3") == 0
    assert seen == [True, True]
