"""`regionroute plan` as it is typed, on nano."""

import json

import pytest

from regionroute.cli.plan import main

NANO = ["--config", "configs/nano.yaml", "--chip", "a100", "data.manifest=nowhere"]


def test_report(capsys):
    assert main([*NANO, "--samples", "1000", "--prompts", "40"]) == 0
    shown = capsys.readouterr().out
    for part in (
        "frozen weights",
        "optimizer state",
        "with checkpointing",
        "per second",
        "fits 80",
    ):
        assert part in shown
    assert "images" in shown.partition("cache on disk")[2]


def test_numbers(capsys):
    assert main([*NANO, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is True
    assert found["bytes"]["step"] > found["bytes"]["activations"] > 0
    assert found["disk_bytes"] == {}


def test_what_does_not_fit_names_keys(capsys):
    assert main([*NANO, "--gpu-memory", "2"]) == 1
    shown = capsys.readouterr().out
    assert "does not fit 2 GiB" in shown
    assert "train.gradient_checkpointing=true" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpus", "0"], "--gpus 0: must be at least 1"),
        (["--share", "1.5"], "--share 1.5: must be a fraction of the peak"),
        (["--share", "nan"], "--share nan: must be a fraction of the peak"),
        (["--gpu-memory", "-1"], "--gpu-memory -1.0: must be above 0"),
        (["--reserve", "-1"], "--reserve -1.0: must not be negative"),
        (["--link", "inf"], "--link inf: must be above 0"),
        (["--prompts", "5"], "--prompts goes with --samples"),
        (["--chip", "nothing"], "--chip nothing: not in the table"),
        (["train.stepz=4"], "unknown key 'train.stepz'"),
    ],
)
def test_bad_input(capsys, arguments, said):
    assert main([*NANO, *arguments]) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.err.count("\n") == 1
    assert not shown.out
