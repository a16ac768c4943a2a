"""What a user can get wrong with `regionroute study`: one sentence, before any stage starts.

The study has four numbers and a folder; its stages are commands with tests of their own. What only
stage can refuse (a folder of another data set, seeds there are not) ends the study with the
stage's own sentence and one that names the stage.
"""

import errno
from types import SimpleNamespace

import pytest

from regionroute.cli.main import main as regionroute
from regionroute.cli.tour import stages, study
from regionroute.files import write_json

PAGE = '<meta name="generator" content="regionroute">of an earlier study'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What an earlier study left, and odd files; starting a stage fails the test."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out" / "study").mkdir(parents=True)
    (tmp_path / "out" / "study" / "report.html").write_text(PAGE)
    (tmp_path / "file").write_text("text")
    monkeypatch.setattr(stages.subprocess, "run", lambda *_, **__: pytest.fail("a stage started"))
    return tmp_path


ARGUMENTS = [
    (["--train", "0"], "--train 0: must be at least 1"),
    (["--train", "-64"], "--train -64: must be at least 1"),
    (["--train", "many"], "argument --train: invalid int value: 'many'"),
    (["--train", "1e3"], "argument --train: invalid int value: '1e3'"),
    (["--test", "0"], "--test 0: must be at least 1"),
    (["--test", "nan"], "argument --test: invalid int value: 'nan'"),
    (["--test", "9" * 5000], "argument --test: invalid int value"),
    (["--steps", "0"], "--steps 0: must be at least 1"),
    (["--steps", "-5"], "--steps -5: must be at least 1"),
    (["--steps", "1.5"], "argument --steps: invalid int value: '1.5'"),
    (["--steps"], "argument --steps: expected one argument"),
    (["--seed", "-1"], "--seed -1: must be at least 0"),
    (["--seed", "inf"], "argument --seed: invalid int value: 'inf'"),
    (["--out", "file"], "--out: file: this is a file, give a folder"),
    (["--out", "file/study"], "--out: file/study: "),
    (["--out", ""], "--out: the folder's name is empty"),
    (["--out", "x" * 300 + "/study"], "the name is too long"),
    (["--trian", "4"], "unrecognized arguments: --trian 4"),
    (["again"], "unrecognized arguments: again"),
]


@pytest.mark.parametrize(("arguments", "told"), ARGUMENTS)
def test_wrong_arguments(folder, refused, arguments, told):
    sentence = refused(regionroute, ["study", *arguments])
    assert told in sentence


def test_no_permission(folder, refused, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert "--out: out/study: no permission to write in" in refused(regionroute, ["study"])


def test_a_stage_that_fails_is_named(folder, refused, monkeypatch):
    monkeypatch.setattr(stages.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=2))
    sentence = refused(regionroute, ["study"])
    assert "stopped at 'scenes' (exit status 2)" in sentence
    assert "the same command resumes there" in sentence


def test_a_page_of_another_origin_is_not_overwritten(folder, refused):
    (folder / "out" / "study" / "report.html").write_text("my own page")
    assert "report.html: this file is not a page of regionroute" in refused(regionroute, ["study"])


def test_a_full_disk_between_the_stages(folder, refused, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "out/study/scores")

    monkeypatch.setattr(stages.subprocess, "run", full)
    assert "out/study/scores: the disk is full" in refused(regionroute, ["study"])


def test_scenes_without_a_single_object_have_a_headline_too(folder, capsys):
    numbers = {"in_mask_ratio": 0.25, "mse_bg": 0.0045, "attention_iou": None}
    slices = {"all": {name: {"mean": value} for name, value in numbers.items()}}
    scores = folder / "out" / "study" / "scores"
    write_json(scores / "codec.json", {"slices": slices})
    methods = {name: {"slices": slices} for name in study.METHODS}
    write_json(scores / "summary.json", {"methods": methods})
    study._headline(folder / "out" / "study")
    said = capsys.readouterr().out
    assert "all scenes, held out:" in said
    assert "error 25% of unedited | success – | background error 0.0045 | leak –" in said
