"""Settings of a resumed run that differ from those it was trained with."""

import json

import pytest

from train.engine.checkpoint import read_state

REGISTRY = "experts/experts.json"


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".log" and path.name != ".lock"
        and "tb" not in path.parts and path.name != "files.jsonl"
    }  # fmt: skip


def test_a_finished_run_refuses_other_settings_by_name_and_stays_as_it_is(runs, capsys):
    assert runs("run", "train.steps=2") == 0
    before = contents(runs.output("run"))
    capsys.readouterr()
    for override, told in (
        ("optim.lr=0.5", "optim.lr was 0.01 and is now 0.5"),
        ("supervision.focus=3", "supervision.focus was 0.1 and is now 3.0"),
        ("seed=7", "seed was 0 and is now 7"),
        ("train.global_batch=2", "train.global_batch was 4 and is now 2"),
    ):
        assert runs("run", "train.steps=2", override) == 2
        error = capsys.readouterr().err
        assert told in error
        assert "choose another output" in error
    assert contents(runs.output("run")) == before


def test_fewer_steps_than_trained_are_refused(runs, capsys):
    assert runs("run", "train.steps=2") == 0
    capsys.readouterr()
    assert runs("run", "train.steps=1") == 2
    assert "already been trained for 2 steps" in capsys.readouterr().err


def test_settings_that_change_no_training_are_allowed(runs, tmp_path):
    assert runs("run", "train.steps=2") == 0
    harmless = ["train.log_every=1", "train.trackers=[]", "train.save_every=1", "train.keep=5"]
    harmless += [f"data.cache={tmp_path / 'elsewhere'}", "routing.threshold=0.3"]
    harmless += ["experts.license=mit", "train.loss_spike=0", "train.accumulation=2"]
    assert runs("run", "train.steps=2", *harmless) == 0
    extra = json.loads((runs.output("run") / REGISTRY).read_text())["extra"]
    assert extra["routing"]["threshold"] == 0.3  # of the exported files, which say so
    assert "changed_settings" not in extra


def test_more_steps_with_other_settings_keep_what_held_before(runs, capsys):
    assert runs("run", "train.steps=2") == 0
    capsys.readouterr()
    assert runs("run", "train.steps=4", "optim.lr=0.005") == 0
    assert "from step 3 on: optim.lr was 0.01 and is now 0.005" in capsys.readouterr().out
    assert runs("run", "train.steps=5", "optim.lr=0.005") == 0
    extra = json.loads((runs.output("run") / REGISTRY).read_text())["extra"]
    assert extra["config"]["optim"]["lr"] == 0.005
    assert extra["changed_settings"] == [{"until_step": 2, "settings": {"optim.lr": 0.01}}]


@pytest.mark.parametrize("config_is_kept", [True, False])
def test_checkpoints_of_earlier_versions_know_no_settings(runs, capsys, config_is_kept):
    """Then the run's config.yaml says what they were; without it nothing can be compared."""
    assert runs("run", "train.steps=2") == 0
    folder = runs.output("run") / "checkpoints" / "step-000002"
    values = json.loads((folder / "trainer.json").read_text())
    values.pop("settings"), values.pop("changes")
    (folder / "trainer.json").write_text(json.dumps(values))
    (folder / "checksums.json").unlink()
    assert read_state(folder).settings is None
    if not config_is_kept:
        (runs.output("run") / "config.yaml").unlink()
    capsys.readouterr()
    code = runs("run", "train.steps=2", "optim.lr=0.5")
    assert code == (2 if config_is_kept else 0)
    assert ("optim.lr was 0.01" in capsys.readouterr().err) == config_is_kept
