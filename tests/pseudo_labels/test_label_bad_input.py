"""Everything a user can get wrong with `regionroute label`: one sentence, nothing lost."""

import errno
import json

import numpy as np
import pytest
from PIL import Image

from pseudo_labels import job
from regionroute.cli.main import main as regionroute
from regionroute.files import read_jsonl, write_jsonl

GOOD = ["label", "--labels", "photos/labels.jsonl", "--styles", "scenes", "--only", "line-art"]
GOOD += ["--size", "32", "--workers", "1", "--out", "out", "--min-structure", "-1"]


@pytest.fixture
def folder(tmp_path, photos, monkeypatch):
    """The photos, somebody's data set, and odd files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("text")
    (tmp_path / "empty.jsonl").write_text("\n \n")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "painting.yaml").write_text("styles: {a: {stylizer: painting, settings: {}}}")
    write_jsonl(tmp_path / "theirs" / "manifest.jsonl", [{"precious": True}])
    (tmp_path / "scenes" / ".cache").mkdir(parents=True)
    (tmp_path / "scenes" / ".cache" / "scenes.json").write_text("{}")
    (tmp_path / "scenes" / "manifest.jsonl").write_text("")
    return tmp_path


ARGUMENTS = [
    (["label"], "required: --out"),
    ([*GOOD, "--labels", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
    ([*GOOD, "--labels", "photos"], "photos: this is a folder"),
    ([*GOOD, "--labels", "binary.jsonl"], "binary.jsonl: this is not UTF-8 text"),
    ([*GOOD, "--out", "file"], "file: this is a file, give a folder"),
    ([*GOOD, "--out", "file/out"], "file is a file, not a folder"),
    ([*GOOD, "--out", ""], "the folder's name is empty"),
    ([*GOOD, "--out", "theirs"], "theirs: this folder holds another data set"),
    ([*GOOD, "--out", "scenes"], "scenes: this folder holds another data set"),
    ([*GOOD, "--styles", "nowhere.yaml"], "nowhere.yaml: no such styles file"),
    ([*GOOD, "--styles", "theirs"], "theirs: no such styles file"),
    ([*GOOD, "--styles", "binary.jsonl"], "binary.jsonl: this file is not UTF-8"),
    (
        [*GOOD, "--styles", "painting.yaml", "--only", "a"],
        "style 'a': a painting style: give either 'style'",
    ),
    ([*GOOD, "--only", "neon"], "unknown style 'neon', the nearest known one is"),
    ([*GOOD, "--only", "line-art, neon"], "unknown style 'neon', the nearest known one is"),
    ([*GOOD, "--only", ","], "no style is chosen, name one or leave the choice (--only) out"),
    ([*GOOD, "--size", "31"], "size is 31"),
    ([*GOOD, "--size", "-64"], "size is -64"),
    ([*GOOD, "--size", "inf"], "invalid int value: 'inf'"),
    ([*GOOD, "--feather", "-1"], "feather is -1"),
    ([*GOOD, "--feather", "1000000000"], "feather is 1000000000: use 0 to 32 pixels"),
    ([*GOOD, "--split-val", "1.5"], "--test-share 1.5"),
    ([*GOOD, "--hold-out-styles", "pixelart"], "no style 'pixelart' among those that are made"),
    (
        [*GOOD, "--only", "pixel-art", "--hold-out-styles", "pixel-art"],
        "--hold-out-styles names every style",
    ),
    ([*GOOD, "--split-val", "nan"], "--test-share nan"),
    ([*GOOD, "--split-val", "half"], "invalid float value: 'half'"),
    ([*GOOD, "--limit", "0"], "--limit 0"),
    ([*GOOD, "--workers", "-2"], "--workers -2"),
    ([*GOOD, "--workers", "100000"], "--workers 100000: must be at most 256"),
    ([*GOOD, "--objects", "dog"], "--objects goes with --images"),
    (["label", "--out", "out"], "give --labels FILE, or --images FOLDER"),
    (["label", "--out", "out", "--images", "photos"], "--images needs --objects"),
    (["label", "--out", "out", "--images", "photos", "--objects", " , "], "needs --objects"),
    (["label", "--out", "out", "--images", "none", "--objects", "dog"], "none: no such folder of"),
    (["label", "--out", "out", "--images", "theirs", "--objects", "dog"], "there is no photo in"),
    ([*GOOD, "--images", "none"], "no sample could be made"),
    ([*GOOD, "--multi", "1"], "--multi needs two styles"),
    ([*GOOD, "--caption"], "--caption needs --judge"),
    ([*GOOD, "--judge", "/no/model"], "/no/model: no such folder"),
    ([*GOOD, "--references", "/no/model"], "/no/model: no such folder"),
    ([*GOOD, "--instances", "some"], "instances is 'some'"),
    ([*GOOD, "--threshold", "2"], "threshold of the grounder is 2.0"),
    ([*GOOD, "--min-area", "0.9"], "min_area and max_area must satisfy"),
    ([*GOOD, "--max-alike", "999"], "max_alike is 999"),
    ([*GOOD, "--exclude", "none.txt"], "none.txt: no such list of excluded samples"),
    ([*GOOD, "--preview", "0"], "--preview 0"),
    ([*GOOD, "--device", "cuda:99"], "device cuda:99: not usable here"),
    ([*GOOD, "--lables", "x"], "unrecognized arguments: --lables"),
]


@pytest.mark.parametrize(("arguments", "told"), ARGUMENTS)
def test_wrong_arguments(folder, refused, arguments, told):
    assert told in refused(regionroute, arguments)
    assert not (folder / "out" / "manifest.jsonl").exists()


def painting(**settings):
    entry = {"stylizer": "painting", "settings": settings}
    return json.dumps({"styles": {"a": entry}})


PAINTINGS = [
    (painting(style=26), "no painting style 26"),
    (painting(style="x"), "no painting style x"),
    (painting(style={"1": "x"}), "no painting style"),
    (painting(style=1, reference="file"), "give either 'style'"),
    (painting(reference=5), "setting 'reference' must be a file name, not 5"),
    (painting(reference="nowhere.png"), "nowhere.png: no such image"),
    (painting(reference="file"), "file: this image cannot be read"),
    (painting(style=1, strength=2), "the strength of a painting style is 2"),
    (painting(style=1, strength="x"), "style 'a': "),
    (painting(style=1, size=5), "the size of a painting style is 5"),
    (painting(style=1, threads=0), "the threads of a painting style is 0"),
    (painting(style=1, threads="x"), "the threads of a painting style is 'x'"),
    (painting(style=1, stile=2), "unknown setting 'stile', the nearest known one is 'style'"),
]


@pytest.mark.parametrize(("text", "told"), PAINTINGS)
def test_wrong_painting_styles(folder, refused, text, told):
    (folder / "styles.yaml").write_text(text)
    arguments = [*GOOD, "--styles", "styles.yaml", "--only", "a"]
    assert told in refused(regionroute, arguments)


def obj(**changes):
    return {"word": "apple", "mask": "p0.png"} | changes


ROWS = [
    "{broken",
    "[]",
    "[" * 100_000,
    '{"file": ' + "9" * 5000 + "}",
    '{"file": NaN}',
    {"word": "dog"},
    {"file": 7, **obj()},
    {"file": "", **obj()},
    {"file": "a\0b.png", **obj()},
    {"file": "\ud800.png", **obj()},
    {"file": "x" * 300, **obj()},
    {"file": "nowhere.png", **obj()},
    {"file": ".", **obj()},
    {"file": "labels.jsonl", **obj()},
    {"file": "p0.png", "word": "dog"},
    {"file": "p0.png", "word": "dog", "bbox": [1, 2, 3]},
    {"file": "p0.png", "word": "dog", "segmentation": [[1, 2, 3, 4]]},
    {"file_name": "p0.png", "text": "a dog"},
    {"file_name": "p0.png", "attn_list": [["dog", 7]]},
    {"file": "bomb.png", **obj()},
    {"file": "empty.png", **obj()},
    {"file": "cut.jpg", **obj()},
    {"file": "p0.png", "word": " ", "mask": "p0.png"},
    {"file": "p0.png", "word": 7, "mask": "p0.png"},
    {"file": "p0.png", **obj(mask="nowhere.png")},
    {"file": "p0.png", **obj(mask="a\0b")},
    {"file": "p0.png", **obj(mask=".")},
    {"file": "p0.png", **obj(mask="labels.jsonl")},
    {"file": "p0.png", **obj(mask="small.png")},
    {"file": "p0.png", **obj(mask="black.png")},
    {"file": "p0.png", **obj(mask="white.png")},
    {"file": "p0.png", **obj(instances=0)},
    {"file": "p0.png", **obj(instances=1e99)},
    {"file": "tiny.png", **obj(mask="tiny.png")},
    {"image": "p0.png"},
    {"image": "p0.png", "objects": []},
    {"image": "p0.png", "objects": {"word": "dog"}},
    {"image": "p0.png", "objects": ["dog"]},
    {"image": "p0.png", "objects": [obj(mask=None)]},
]


def bomb(path):
    """A picture of 144 million pixels in a few bytes."""
    Image.new("1", (12_000, 12_000)).save(path)


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_a_row_that_cannot_be_used_is_the_reason(folder, capsys, row):
    for name, size, value in (
        ("small", 8, 255), ("black", 96, 0), ("white", 96, 255), ("tiny", 8, 255)
    ):  # fmt: skip
        Image.new("L", (size, size), value).save(folder / "photos" / f"{name}.png")
    (folder / "photos" / "empty.png").touch()
    whole = folder / "photos" / "whole.jpg"
    Image.open(folder / "photos" / "p0.png").save(whole)
    (folder / "photos" / "cut.jpg").write_bytes(whole.read_bytes()[:900])
    bomb(folder / "photos" / "bomb.png")
    text = row if isinstance(row, str) else json.dumps(row)
    (folder / "photos" / "labels.jsonl").write_text(text + "\n")
    assert regionroute(GOOD) == 2
    *_, sentence = capsys.readouterr().err.splitlines()
    assert sentence.startswith("error: photos/labels.jsonl: no sample could be made; ")
    assert not (folder / "out" / "manifest.jsonl").exists()
    (rejected,) = read_jsonl(folder / "out" / "rejected.jsonl")
    assert rejected["line"] == 1
    assert rejected["reason"] in sentence


def test_no_rows_at_all(folder, refused):
    sentence = refused(regionroute, [*GOOD, "--labels", "empty.jsonl"])
    assert "empty.jsonl: no sample could be made" in sentence


def test_bad_rows_do_not_stop_the_good_ones(folder, capsys):
    with (folder / "photos" / "labels.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(
            (row if isinstance(row, str) else json.dumps(row)) + "\n" for row in ROWS[:16]
        )
    assert regionroute(GOOD) == 0
    said = capsys.readouterr()
    assert "16 rejected" in said.out
    assert "Traceback" not in said.err


def test_a_full_disk_keeps_what_is_made_and_the_next_run_goes_on(folder, refused, monkeypatch):
    write, count = job.write_image, 0

    def full(path, image):
        nonlocal count
        count += 1
        if count > 4:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, image)

    with monkeypatch.context() as patch:
        patch.setattr(job, "write_image", full)
        assert "the disk is full" in refused(regionroute, GOOD)
    assert not (folder / "out" / "manifest.jsonl").exists()
    assert regionroute(GOOD) == 0


def test_a_file_in_the_place_of_a_folder_is_named(folder, refused):
    (folder / "out").mkdir()
    (folder / "out" / "images").write_text("in the way")
    assert "out/images: a file of this name is in the way" in refused(regionroute, GOOD)


def test_no_permission_is_told_before_the_work(folder, refused, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert "out: no permission to write in" in refused(regionroute, GOOD)


def odd_photo(kind, photo):
    """The same picture in an unusual form: (picture to save, its options)."""
    if kind == "cmyk.jpg":
        return photo.convert("CMYK"), {}
    if kind == "16bit.png":
        wide = np.asarray(photo.convert("L")).astype(np.uint16) * 257
        return Image.fromarray(wide), {}
    if kind == "turned.jpg":
        exif = Image.Exif()
        exif[0x0112] = 6  # shown turned by a quarter to the right
        return photo.transpose(Image.Transpose.ROTATE_90), {"exif": exif, "quality": 95}
    if kind == "clear.png":
        photo.putalpha(Image.new("L", photo.size, 200))
        return photo, {}
    if kind == "moving.gif":
        others = [Image.new("RGB", photo.size, "red")]
        return photo, {"save_all": True, "append_images": others}
    return photo.convert("L"), {}


ODD = ["cmyk.jpg", "16bit.png", "turned.jpg", "clear.png", "moving.gif", "grey.png"]


@pytest.mark.parametrize("kind", ODD)
def test_photos_of_unusual_kinds_are_used_as_they_look(folder, kind):
    photo = Image.open(folder / "photos" / "p2.png").convert("RGB")
    plain = np.asarray(photo.convert("L"), dtype=float)
    picture, options = odd_photo(kind, photo)
    picture.save(folder / "photos" / kind, **options)
    mask = next((folder / "photos").glob("p2.*.png")).name
    row = {"file": kind, "word": "dog", "mask": mask}
    (folder / "photos" / "labels.jsonl").write_text(json.dumps(row) + "\n")
    assert regionroute([*GOOD, "--size", "96"]) == 0
    (context,) = (folder / "out" / "images").iterdir()
    stored = np.asarray(Image.open(context).convert("L"), dtype=float)
    assert stored.shape == plain.shape
    expected = 0.784 * plain + 0.216 * 255 if kind == "clear.png" else plain
    assert np.abs(stored - expected).mean() < 8


def test_a_photo_beyond_the_limit_is_named_with_its_size(folder, capsys):
    bomb(folder / "photos" / "bomb.png")
    row = {"file": "bomb.png", **obj()}
    with (folder / "photos" / "labels.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    assert regionroute(GOOD) == 0
    (rejected,) = read_jsonl(folder / "out" / "rejected.jsonl")
    assert "bomb.png: 12000x12000 pixels are too many" in rejected["reason"]
    assert "Warning" not in capsys.readouterr().err


def test_ctrl_c_ends_with_one_word_and_keeps_what_is_made(folder, capsys, monkeypatch):
    write, count = job.write_image, 0

    def interrupted(path, image):
        nonlocal count
        count += 1
        if count > 4:
            raise KeyboardInterrupt
        write(path, image)

    with monkeypatch.context() as patch:
        patch.setattr(job, "write_image", interrupted)
        assert regionroute(GOOD) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"
    assert len(list((folder / "out").rglob("*.png"))) == 4
    assert regionroute(GOOD) == 0
