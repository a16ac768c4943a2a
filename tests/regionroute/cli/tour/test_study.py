import importlib
import sys
from types import SimpleNamespace

import pytest

from regionroute.cli.main import COMMANDS
from regionroute.cli.tour import demo, stages, study
from regionroute.config.run import load_config
from regionroute.errors import UserError
from regionroute.files import write_json, write_text


def test_the_two_arms_differ_in_supervision_alone(monkeypatch, tmp_path):
    started = []

    class Finished:
        returncode = 0

    def start(command, **_):
        started.append(command[1:])
        return Finished()

    monkeypatch.setattr(stages.subprocess, "run", start)
    write_text(tmp_path / "scenes" / "manifest.jsonl", "")
    args = study.parser().parse_args(["--out", str(tmp_path), "--steps", "7", "--seed", "5"])
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


def test_a_failed_stage_stops_the_tour_and_names_it(monkeypatch, capsys):
    commands = []

    def start(command, **_):
        commands.append(command)
        return SimpleNamespace(returncode=3)

    monkeypatch.setattr(stages.subprocess, "run", start)
    with pytest.raises(UserError, match=r"'an edit' \(exit status 3\)"):
        stages.Stopwatch().run("an edit", ["edit", "a b.png"])
    # Shown as a user would type it, started with this interpreter wherever the package is.
    assert "$ regionroute edit 'a b.png'\n" in capsys.readouterr().out
    assert commands == [[sys.executable, "-m", "regionroute.cli", "edit", "a b.png"]]


@pytest.mark.parametrize("tour", [demo, study])
def test_every_stage_is_a_command_with_arguments_it_takes(monkeypatch, tmp_path, tour, leave_pairs):
    monkeypatch.chdir(tmp_path)
    commands = []

    def start(command, **_):
        commands.append(command[3:])
        leave_pairs(command)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(stages.subprocess, "run", start)
    monkeypatch.setattr(study, "_headline", lambda out: None)
    slices = {"all": {"in_mask_ratio": {"mean": 0.4}}}
    methods = {demo.NEW_STYLE: {"slices": slices}}
    write_json(tmp_path / "out" / "scores" / "summary.json", {"methods": methods})
    assert tour.main(["--out", "out", "--steps", "3"]) == 0
    assert len(commands) > 5
    for name, *arguments in commands:
        parser = importlib.import_module(COMMANDS[name].module).parser()
        args = parser.parse_intermixed_args(arguments)
        if name == "train":
            load_config(args.config, args.overrides)
