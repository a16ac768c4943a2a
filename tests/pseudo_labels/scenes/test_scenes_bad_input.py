"""Everything a user can get wrong with `regionroute scenes`: one sentence, nothing lost."""

import errno

import pytest

from pseudo_labels.scenes import build as scenes
from pseudo_labels.scenes import samples as scene_samples
from pseudo_labels.scenes.build import build_scenes, scene_jobs
from regionroute.cli.main import main as regionroute
from regionroute.files import write_json, write_jsonl

GOOD = ["scenes", "--out", "out", "--train", "1", "--test", "0", "--size", "32"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with other people's data sets and odd files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("text")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("theirs", "labelled", "broken", "corpus"):
        write_jsonl(tmp_path / name / "manifest.jsonl", [{"precious": True}])
    write_json(tmp_path / "labelled" / ".cache" / "photo-12.json", {})
    write_json(tmp_path / "broken" / ".cache" / "scenes.json", {})
    (tmp_path / "broken" / ".cache" / "scenes.json").write_text("{")
    return tmp_path


ARGUMENTS = [
    (["scenes"], "required: --out"),
    ([*GOOD, "--out", "file"], "file: this is a file, give a folder"),
    ([*GOOD, "--out", "file/out"], "file is a file, not a folder"),
    ([*GOOD, "--out", ""], "the folder's name is empty"),
    ([*GOOD, "--out", "theirs"], "theirs: another data set is here"),
    ([*GOOD, "--out", "labelled"], "labelled: another data set is here"),
    ([*GOOD, "--out", "broken"], "broken/.cache/scenes.json:1: this is not JSON"),
    ([*GOOD, "--train", "-1"], "--train -1"),
    ([*GOOD, "--train", "some"], "invalid int value: 'some'"),
    ([*GOOD, "--train", "1" + "0" * 30], "are too many"),
    ([*GOOD, "--test", "1" + "0" * 30], "--test 1"),
    ([*GOOD, "--train", "0"], "--train and --test are both 0"),
    ([*GOOD, "--seed", "500"], "--seed 500"),
    ([*GOOD, "--seed", "-1"], "--seed -1"),
    ([*GOOD, "--seed", "nan"], "invalid int value: 'nan'"),
    ([*GOOD, "--size", "31"], "--size 31"),
    ([*GOOD, "--size", "1000000"], "--size 1000000: scenes need 32 to 1024 pixels"),
    ([*GOOD, "--workers", "0"], "--workers 0"),
    ([*GOOD, "--workers", "100000"], "--workers 100000: must be at most 256"),
    ([*GOOD, "--styles", "nowhere.yaml"], "nowhere.yaml: no such styles file"),
    ([*GOOD, "--styles", "folder.yaml"], "folder.yaml: no such styles file"),
    ([*GOOD, "--styles", "binary.yaml"], "binary.yaml: this file is not UTF-8"),
    (
        [*GOOD, "--only", "pixelart"],
        "unknown style 'pixelart', the nearest known one is 'pixel-art",
    ),
    ([*GOOD, "--only", "line-art, neon"], "unknown style 'neon', the nearest known one is"),
    ([*GOOD, "--only", ","], "no style is chosen, name one or leave the choice (--only) out"),
    ([*GOOD, "--all-styles", "--one-style"], "not allowed with"),
    ([*GOOD, "--pretrain", "0"], "--pretrain 0"),
    ([*GOOD, "--pretrain", "5", "--seed", "-1"], "--seed -1"),
    ([*GOOD, "--pretrain", "5", "--out", "corpus"], "corpus: this folder holds another data set"),
    ([*GOOD, "--pretrain", "2000000"], "are too many"),
    ([*GOOD, "--trian", "4"], "unrecognized arguments: --trian"),
]


@pytest.mark.parametrize(("arguments", "told"), ARGUMENTS)
def test_wrong_arguments(folder, refused, arguments, told):
    assert told in refused(regionroute, arguments)
    assert not (folder / "out").exists()


STYLES = [
    ("", "a styles file holds 'styles:'"),
    ("- a\n- b\n", "a styles file holds 'styles:'"),
    ("styles: [a]\n", "a styles file holds 'styles:'"),
    ("styles:\n  a: [1\n", "styles.yaml:3: this is not valid YAML"),
    ("styles: {a: {stylizer: filter}, a: {stylizer: filter}}", "key 'a' is given twice"),
    ("styles: {a: !!python/object:os.system {}}", "this is not valid YAML"),
    ("styles: {a: 2020-13-45}", "this is not valid YAML"),
    ("styles: {? [a] : 1}", "this is not valid YAML"),
    ("styles: {a: {stylizer: filter}}\nstyle: 1\n", "unknown key 'style'"),
    ("styles: {a: filter}", "style 'a': needs 'stylizer'"),
    ("styles: {../a: {stylizer: filter}}", "style '../a': use letters"),
    ("styles: {a: {stylizr: filter}}", "unknown key 'stylizr', the nearest known one is 'styliz"),
    ("styles: {a: {stylizer: fitler}}", "unknown stylizer 'fitler', the nearest known one is 'fil"),
    ("styles: {a: {stylizer: [filter]}}", "unknown stylizer '['filter']'"),
    ("styles: {a: {stylizer: filter, phrase: 7}}", "'phrase' must be text"),
    ("styles: {a: {stylizer: filter, settings: 7}}", "'settings' must be a mapping"),
    ("styles: {a: {stylizer: filter, settings: {fitler: x}}}", "unknown setting 'fitler'"),
    ("styles: {a: {stylizer: filter}}", "style 'a': "),
    ("styles: {a: {stylizer: filter, settings: {filter: sepia}}}", "unknown filter 'sepia'"),
    (
        "styles: {a: {stylizer: filter, settings: {filter: 3}}}",
        "filter of a filter style is 3",
    ),
    (
        "styles: {a: {stylizer: filter, settings: {filter: [x]}}}",
        "of a filter style is ['x']",
    ),
]


@pytest.mark.parametrize(("text", "told"), STYLES)
def test_wrong_styles_files(folder, refused, text, told):
    (folder / "styles.yaml").write_text(text)
    sentence = refused(regionroute, [*GOOD, "--styles", "styles.yaml"])
    assert "styles.yaml" in sentence or "style 'a'" in sentence
    assert told in sentence
    assert not (folder / "out").exists()


def test_an_interrupting_full_disk_keeps_what_is_made(folder, refused, monkeypatch):
    jobs = scene_jobs(3, 0)
    looks = tuple(
        scenes.BuiltStyle(entry, entry.build()) for entry in scenes.load_styles("scenes")[:1]
    )
    build_scenes(folder / "out", jobs[:1], scenes.SceneSettings(32, looks))

    def full(path, image):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(scene_samples, "write_image", full)
    arguments = [*GOOD, "--train", "3", "--only", looks[0].entry.spec.name]
    assert "the disk is full" in refused(regionroute, arguments)


def test_no_permission_is_told_before_the_work(folder, refused, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert "out: no permission to write in" in refused(regionroute, GOOD)
