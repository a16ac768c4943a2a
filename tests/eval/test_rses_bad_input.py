"""Everything a user can get wrong with the score ends in one sentence and loses nothing."""

import errno
import json
import shutil

import pytest
import torch
from PIL import Image

from eval import rses
from eval.encoders.features import LPIPS_VARIABLE
from regionroute.data.images import write_image


@pytest.fixture
def folder(tmp_path, tiny_manifest, edits, monkeypatch):
    """A folder with data, two methods' edits, the results of an earlier run, and odd files."""
    monkeypatch.delenv(LPIPS_VARIABLE, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "no-hub"))
    monkeypatch.chdir(tmp_path)
    for name in ("samples.jsonl", "summary.json", "summary.md"):
        (tmp_path / "scores" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "scores" / name).write_text("of an earlier run")
    earlier = '<meta name="generator" content="regionroute">of an earlier run'
    (tmp_path / "report.html").write_text(earlier)
    (tmp_path / "file").write_text("text")
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk.pth").write_bytes(b"\x80nonsense")
    (tmp_path / "junk.safetensors").write_bytes(b"\xff" * 20)
    return tmp_path


GOOD = ["--manifest", "pairs", "--split", "all", "--edits", "good", "--out", "scores"]

ARGUMENTS = [
    ([], "required: --manifest"),
    ([*GOOD, "--manifest", "nowhere"], "nowhere/manifest.jsonl: no such manifest"),
    ([*GOOD, "--manifest", "pairs/0.mask.png"], "pairs/0.mask.png"),
    ([*GOOD, "--manifest", "empty"], "empty/manifest.jsonl: no such manifest"),
    ([*GOOD, "--split", "tset"], "--split tset: no such samples"),
    ([*GOOD, "--edits", "nowhere"], "--edits nowhere: no such folder"),
    ([*GOOD, "--edits", "file"], "--edits file: no such folder"),
    ([*GOOD, "--edits", "x="], "--edits x=: no such folder"),
    ([*GOOD, "--edits", "good"], "'good' is used twice"),
    ([*GOOD, "--edits", "ceiling=half"], "'ceiling' is reserved"),
    ([*GOOD, "--out", "file"], "--out file: this is a file, give a folder"),
    ([*GOOD, "--out", "file/scores"], "file is a file, not a folder"),
    ([*GOOD, "--out", ""], "--out: the folder's name is empty"),
    ([*GOOD, "--report", "scores"], "--report scores: this is a folder"),
    ([*GOOD, "--report", "file/report.html"], "file is a file, not a folder"),
    ([*GOOD, "--report", "pairs/manifest.jsonl"], "ends in .html"),
    ([*GOOD, "--batch-size", "0"], "--batch-size 0: must be at least 1"),
    ([*GOOD, "--batch-size", "many"], "invalid int value: 'many'"),
    ([*GOOD, "--seed", "-1"], "--seed -1: must be at least 0"),
    ([*GOOD, "--seed", "nan"], "invalid int value: 'nan'"),
    ([*GOOD, "--device", "warp"], "device warp: not usable"),
    ([*GOOD, "--device", "cuda:99"], "device cuda:99: not usable"),
    ([*GOOD, "--device", "meta"], "device meta: not usable"),
    ([*GOOD, "--lpips-weights", "nowhere"], "--lpips-weights nowhere: no such file"),
    ([*GOOD, "--lpips-weights", "empty"], "--lpips-weights empty: no *alexnet*"),
    ([*GOOD, "--lpips-weights", "junk.pth"], "junk.pth: not torchvision's AlexNet"),
    ([*GOOD, "--lpips-weights", "junk.safetensors"], "junk.safetensors: not torchvision's AlexNet"),
    ([*GOOD, "--clip", "./nowhere"], "--clip ./nowhere: cannot be loaded"),
    ([*GOOD, "--clip", "empty"], "--clip empty: cannot be loaded"),
    ([*GOOD, "--splt", "all"], "unrecognized arguments: --splt"),
    ([*GOOD, "--metrics", "mse_gb"], "--metrics mse_gb: unknown, the nearest known name is"),
    ([*GOOD, "--metrics", ""], "--metrics: no name given"),
    ([*GOOD, "--metrics", "dino", "--encoder", "dino=./nowhere"], "dino ./nowhere: cannot be"),
    ([*GOOD, "--metrics", "dino", "--encoder", "dino=empty"], "dino empty: cannot be loaded"),
    ([*GOOD, "--encoder", "dinno=x"], "the nearest known one is 'dino'"),
    ([*GOOD, "--encoder", "dino"], "write NAME=PLACE"),
    ([*GOOD, "--metrics", "gram", "--style-images", "nowhere"], "nowhere: no such folder"),
    ([*GOOD, "--metrics", "gram", "--style-images", "empty"], "empty: no image"),
    ([*GOOD, "--metrics", "gram", "--encoder", "vgg=junk.pth"], "vgg=junk.pth: these are no"),
    ([*GOOD, "--judge", "./nowhere"], "--judge ./nowhere: cannot be loaded"),
    ([*GOOD, "--judge-config", "file"], "give --judge as well"),
    ([*GOOD, "--scope", "object image"], "invalid choice"),
    ([*GOOD, "--fail-if", "leak"], "write [METHOD:]METRIC>NUMBER"),
    ([*GOOD, "--fail-if", "bad:leak>0"], "no such method, there are good"),
    ([*GOOD, "--fail-if", "q1<1"], "'q1' is not among the metrics asked for"),
]


@pytest.mark.parametrize(("arguments", "told"), ARGUMENTS)
def test_wrong_arguments(folder, refused, arguments, told):
    assert told in refused(rses.main, arguments)


ROWS = [
    (lambda s: s.line(b"{broken"), "manifest.jsonl:5: this line is not JSON"),
    (lambda s: s.line(b"[1, 2]"), "manifest.jsonl:5: this line must be a JSON object"),
    (lambda s: s.line(b'{"schema": 1, "id": "\xff"}'), "manifest.jsonl: this is not UTF-8"),
    (lambda s: s.line(b"[" * 100_000), "manifest.jsonl:5: this line cannot be read"),
    (
        lambda s: s.line(b'{"schema": ' + b"9" * 5000 + b"}"),
        "manifest.jsonl:5: this line cannot be read",
    ),
    (lambda s: s.line(b'{"schema": 1}'), "manifest.jsonl:5: key 'id' is missing"),
    (lambda s: s.row(schema=2), "manifest.jsonl:2: schema version 2"),
    (lambda s: s.row(schema="1"), "manifest.jsonl:2: schema version '1'"),
    (lambda s: s.row(id="pair-0"), "manifest.jsonl:2: id 'pair-0' was used on line 1"),
    (lambda s: s.row(id="../pair"), "manifest.jsonl:2: id '../pair' cannot be a file name"),
    (lambda s: s.row(id="x" * 5000), "is too long for a file name"),
    (lambda s: s.row(id=7), "manifest.jsonl:2: id: "),
    (lambda s: s.row(prompt="\ud800"), "manifest.jsonl:2: this line cannot be read"),
    (
        lambda s: s.row(promt="x"),
        "manifest.jsonl:2: unknown key 'promt', the nearest known one is 'prompt'",
    ),
    (lambda s: s.row(regions={}), "manifest.jsonl:2: regions: "),
    (lambda s: s.row(context="../../secret.png"), "it must stay inside the manifest's folder"),
    (lambda s: s.row(target="/etc/passwd"), "it must be relative"),
    (lambda s: s.row(region_mask="a\\b.png"), "write it with forward slashes"),
    (lambda s: s.row(region_box=[0, 0, 1]), "regions.0.box"),
    (
        lambda s: s.row(region_score=float("nan")),
        "manifest.jsonl:2: this line cannot be read (NaN is no JSON)",
    ),
    (lambda s: s.row(region_score="high"), "manifest.jsonl:2: regions.0.score"),
    (lambda s: s.nothing(), "--split all: no such samples"),
]


@pytest.mark.parametrize(("damage", "told"), ROWS)
def test_wrong_rows(folder, spoil, refused, damage, told):
    damage(spoil)
    assert told in refused(rses.main, GOOD)


PICTURES = [
    (
        lambda s: s.text("../good/pair-1.png"),
        "good",
        "good/pair-1.png: this image cannot be read",
    ),
    (lambda s: s.cut("../good/pair-1.png"), "good", "good/pair-1.png: this image cannot be read"),
    (lambda s: s.directory("../good/pair-1.png"), "good", "good/pair-1.png: this is a folder"),
    (
        lambda s: s.png("../good/pair-1.png", (32, 64)),
        "good",
        "good/pair-1.png: 32x64 pixels but its context",
    ),
    (lambda s: s.circle("../good/pair-1.png"), "good", "good/pair-1.png: links lead in a circle"),
    (
        lambda s: s.text("1.context.png"),
        "every method",
        "1.context.png: this image cannot be read",
    ),
    (lambda s: s.circle("1.target.png"), "every method", "1.target.png: links lead in a circle"),
    (
        lambda s: s.png("1.target.png", (8, 8)),
        "every method",
        "1.target.png: the target is 8x8 pixels",
    ),
    (lambda s: s.png("1.mask.png", (64, 64)), "every method", "1.mask.png: the mask is empty"),
    (
        lambda s: s.png("1.mask.png", (65, 64)),
        "every method",
        "1.mask.png: the mask is 65x64 pixels",
    ),
    (lambda s: s.row(region_mask="m" * 300), "every method", "the file name is too long"),
    (lambda s: s.row(regions=[]), "every method", "sample pair-1: it has no region"),
]


@pytest.mark.parametrize(("damage", "who", "told"), PICTURES)
def test_a_wrong_picture_costs_its_own_sample_alone(folder, spoil, capsys, damage, who, told):
    damage(spoil)
    assert rses.main(GOOD) == 0
    error = capsys.readouterr().err
    (line,) = [line for line in error.splitlines() if told in line]
    assert line.strip().startswith(f"{who}: ")
    assert "Traceback" not in error
    summary = json.loads((folder / "scores" / "summary.json").read_text())
    assert summary["methods"]["good"]["n_failed"] == 1


def test_an_unreadable_picture_costs_its_own_sample_alone(folder, capsys, monkeypatch):
    opened = Image.open

    def guarded(path, **rest):
        if path.name == "pair-1.png":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, **rest)

    monkeypatch.setattr(Image, "open", guarded)
    assert rses.main(GOOD) == 0
    error = capsys.readouterr().err
    assert "good: good/pair-1.png: no permission to read this image" in error
    assert "good: 1 of 4 failed" in error


@pytest.mark.parametrize("name", ["samples.jsonl", "summary.json", "report.html"])
def test_a_full_disk_leaves_the_earlier_file(folder, refused, monkeypatch, name):
    replace = type(folder).replace

    def full(path, target):
        if target.name == name:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        return replace(path, target)

    monkeypatch.setattr(type(folder), "replace", full)
    for made in ("samples.jsonl", "summary.json", "summary.md"):
        if made != name:  # what is written before the disk is full may be new
            (folder / "scores" / made).unlink()
    sentence = refused(rses.main, [*GOOD, "--report", "report.html"])
    assert name in sentence
    assert "the disk is full" in sentence


def test_no_permission_is_told_before_the_work(folder, refused, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert "no permission to write in" in refused(rses.main, GOOD)


def test_edits_without_one_picture_is_exit_code_one(folder, capsys):
    shutil.rmtree(folder / "good")
    (folder / "good").mkdir()
    write_image(folder / "good" / "other.png", torch.rand(3, 8, 8))
    assert rses.main(GOOD) == 1
    assert "good: 4 of 4 failed" in capsys.readouterr().err
