import sys

import pytest

from regionroute.cli.tour import stages, study
from regionroute.errors import UserError


def test_the_two_arms_differ_in_supervision_alone(monkeypatch, tmp_path):
    started = []

    class Finished:
        returncode = 0

    def start(command, **_):
        started.append(command[1:])
        return Finished()

    monkeypatch.setattr(stages.subprocess, "run", start)
    args = study.make_parser().parse_args(["--out", str(tmp_path), "--steps", "7", "--seed", "5"])
    for arm, overrides in study.ARMS.items():
        study._train(stages.Stopwatch(), args, tmp_path, arm, overrides)

    without, with_ = (set(command) for command in started)
    assert without - with_ == {
        "supervision.focus=0",
        "supervision.cover=0",
        f"output={tmp_path / 'without'}",
    }
    assert with_ - without == {f"output={tmp_path / 'with'}"}
    assert "train.steps=7" in without & with_
    assert "seed=5" in without & with_


def test_a_failed_stage_stops_the_demo_and_names_it(capfd):
    with pytest.raises(UserError, match="'scenes'"):
        stages.Stopwatch().run("scenes", ["-c", "raise SystemExit(3)"])
    assert f"$ python -c '{'raise SystemExit(3)'}'" in capfd.readouterr().out


def test_stages_are_shown_as_a_user_would_type_them():
    shown = stages.typed([str(stages.ROOT / "train" / "run.py"), "--config", "x.yaml"])
    assert shown.split()[0] == "python"
    assert shown.endswith("train/run.py --config x.yaml")
    assert (
        stages.typed(["-m", "regionroute.cli", "edit", "a b.png"]) == "regionroute edit 'a b.png'"
    )
    assert sys.executable not in shown
