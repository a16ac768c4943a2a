"""The demo's own part: its photos, its arguments, the order of its stages."""

from types import SimpleNamespace

import pytest
from PIL import Image

from regionroute.cli.main import main as regionroute
from regionroute.cli.tour import demo, stages
from regionroute.files import read_jsonl, write_json


@pytest.fixture
def started(monkeypatch, tmp_path, leave_pairs):
    """The commands of the stages, none of which runs."""
    monkeypatch.chdir(tmp_path)
    commands = []

    def start(command, **_):
        commands.append(" ".join(command[1:]))
        leave_pairs(command)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(stages.subprocess, "run", start)
    return commands


def test_the_photos_are_there_and_every_box_lies_in_its_photo(tmp_path):
    labels = demo.write_photos(tmp_path / "photos")

    rows = read_jsonl(labels)
    assert len(rows) == len(demo.PHOTOS)
    for row in rows:
        with Image.open(labels.parent / row["image"]) as photo:
            width, height = photo.size
        x, y, w, h = row["objects"][0]["bbox"]
        assert 0 <= x < x + w <= width
        assert 0 <= y < y + h <= height


def test_stages_follow_each_other(started, tmp_path):
    slices = {"all": {"in_mask_ratio": {"mean": 0.4}}}
    write_json(
        tmp_path / "out" / "demo" / "scores" / "summary.json",
        {"methods": {demo.NEW_STYLE: {"slices": slices}}},
    )
    assert regionroute(["demo", "--steps", "7", "--seed", "5"]) == 0

    order = ["cli label", "cli train", "cli edit", "cli score", "cli report"]
    first = [min(i for i, line in enumerate(started) if part in line) for part in order]
    assert first == sorted(first)
    assert "train.steps=7" in started[first[1]]
    assert "seed=5" in started[first[1]]


def test_a_release_of_scikit_image_without_a_photo(refused, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "PHOTOS", (("no-such.png", "dog", (0, 0, 1, 1)),))
    assert "scikit-image comes without no-such.png" in refused(regionroute, ["demo"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--steps", "0"], "--steps 0: must be at least 1"),
        (["--seed", "-1"], "--seed -1: must be at least 0"),
        (["--out", ""], "--out: the folder's name is empty"),
        (["--train", "4"], "unrecognized arguments: --train 4"),
    ],
)
def test_wrong_arguments(started, refused, arguments, told):
    assert told in refused(regionroute, ["demo", *arguments])
    assert not started
