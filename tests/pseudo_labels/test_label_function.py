"""`label` as a function: the report it returns is what the command writes and prints."""

import pytest

from pseudo_labels.curate.filters import Limits
from pseudo_labels.job import BuildSettings
from pseudo_labels.label import label
from regionroute.cli.label import main
from regionroute.data.manifest import load_manifest
from regionroute.errors import UserError

SETTINGS = BuildSettings(
    size=64, limits=Limits(0.001, 0.9, min_strength=0.0, min_structure=-1.0)
)  # scenes are no photos
OPTIONS = ["--size", "64", "--min-area", "0.001", "--max-area", "0.9", "--min-strength", "0"]
OPTIONS += ["--min-structure", "-1", "--styles", "scenes", "--only", "pixel-art,line-art"]


def run(photos, out, **options):
    return label(
        out,
        labels=photos / "labels.jsonl",
        styles="scenes",
        only=["pixel-art", "line-art"],
        settings=SETTINGS,
        workers=1,
        **options,
    )


def test_the_function_makes_what_the_command_makes(photos, tmp_path, contents, capsys):
    report = run(photos, tmp_path / "function", test_share=0.5)
    arguments = ["--labels", str(photos / "labels.jsonl"), "--out", str(tmp_path / "command")]
    assert main([*arguments, *OPTIONS, "--test-share", "0.5", "--workers", "1"]) == 0
    said = capsys.readouterr().out

    made = contents(tmp_path / "function")
    assert made == contents(tmp_path / "command")
    assert any(name.startswith("targets/") for name in made)
    assert load_manifest(report.manifest).samples == report.samples
    assert report.photos == len({sample.context for sample in report.samples}) > 1
    assert sum(report.splits.values()) == len(report.samples)
    assert set(report.splits) == {"train", "test"}
    assert report.review.is_file()
    counts = f"{report.splits['train']} train, {report.splits['test']} test"
    assert f"{len(report.samples)} samples of {report.photos} photos ({counts})" in said


def test_a_sample_is_excluded_from_a_list(photos, tmp_path):
    first = run(photos, tmp_path / "out")
    gone = first.samples[0].id
    (tmp_path / "list.txt").write_text(gone)
    second = run(photos, tmp_path / "out", exclude=tmp_path / "list.txt")
    assert {one.id for one in first.samples} - {one.id for one in second.samples} == {gone}


def test_a_preview_is_a_set_of_its_own(photos, tmp_path):
    report = run(photos, tmp_path / "out", preview=2)
    assert report.manifest.parent == tmp_path / "out" / "preview"
    assert report.photos == 2
    assert not (tmp_path / "out" / "manifest.jsonl").exists()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "give --labels FILE, or --images FOLDER"),
        ({"images": "photos"}, "--images needs --objects"),
        ({"labels": "photos/labels.jsonl", "objects": ["dog"]}, "--objects goes with --images"),
        ({"labels": "photos/labels.jsonl", "test_share": 2}, "test_share 2: must be between"),
        ({"labels": "nowhere.jsonl"}, "nowhere.jsonl: no such file"),
    ],
)
def test_wrong_arguments(photos, tmp_path, monkeypatch, given, sentence):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=sentence):
        label("out", **given)
