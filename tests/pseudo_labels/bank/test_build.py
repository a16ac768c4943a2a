import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pseudo_labels.bank.tasks import COLOURS, recolour
from pseudo_labels.stylize.filters import FILTERS
from regionroute.cli.bank import main
from regionroute.errors import command


@pytest.fixture(scope="module")
def bank(bank_case, tmp_path_factory):
    return bank_case.make_bank(tmp_path_factory.mktemp("bank"))


@pytest.fixture
def copied(bank, tmp_path):
    shutil.copytree(bank.parent / "photos", tmp_path / "photos")
    shutil.copytree(bank, tmp_path / "bank")
    return tmp_path


def index_of(bank):
    return json.loads((bank / "bank.json").read_text())


def run(*arguments):
    return command(main)(list(arguments))


def test_a_bank_holds_each_photo_in_every_style_and_colour(bank):
    index, photos = index_of(bank), load_file(bank / "photos.safetensors")

    assert photos["pictures"].shape == (8, 3, 40, 40)
    assert photos["masks"].shape == (8, 40, 40)
    assert set(index["renderings"]) == {"pixel-art", "cyberpunk"} | {
        f"colour-{name}" for name in COLOURS
    }
    picture = photos["pictures"][3].float() / 255
    for name, expected in (
        ("pixel-art", FILTERS["pixel-art"](picture)),
        ("colour-red", recolour(picture, "red")),
    ):
        rendered = load_file(bank / f"{name}.safetensors")["pictures"][3].float() / 255
        assert torch.allclose(rendered, expected, atol=0.51 / 255)


def test_photos_alone_can_be_kept_and_styles_be_added_later(bank_case, tmp_path):
    labels = bank_case.write_photos(tmp_path / "photos")
    given = bank_case.bank_arguments(labels, tmp_path / "bank")
    styles = ("--styles", "scenes", "--only", "pixel-art,cyberpunk")
    without = [part for part in given if part not in styles]
    assert run(*without, "--photos-only") == 0
    assert {path.name for path in (tmp_path / "bank").iterdir()} == {
        "bank.json", "photos.safetensors",
    }  # fmt: skip
    assert index_of(tmp_path / "bank")["renderings"] == {}
    assert run(*given) == 0
    assert "pixel-art" in index_of(tmp_path / "bank")["renderings"]


def test_squares_are_cut_around_the_objects(bank):
    index, masks = index_of(bank), load_file(bank / "photos.safetensors")["masks"]

    assert [row["words"] for row in index["photos"][:2]] == [["dog"], ["cup"]]
    # The photo is 48 px high and becomes 40; the object's area with it.
    for mask in masks:
        assert 0.1 < mask.float().mean() < 0.35


def test_photos_keep_their_split_when_others_come(bank_case, bank, tmp_path):
    labels = bank_case.write_photos(tmp_path / "photos", count=12)
    assert run(*bank_case.bank_arguments(labels, tmp_path / "more")) == 0

    before = {row["file"]: row["split"] for row in index_of(bank)["photos"]}
    after = {row["file"]: row["split"] for row in index_of(tmp_path / "more")["photos"]}
    assert {name: after[name] for name in before} == before
    assert set(after.values()) == {"train", "test"}


def test_the_split_is_that_of_the_training_pairs(bank, tmp_path):
    from regionroute.cli.label import main as label

    labels = bank.parent / "photos" / "labels.jsonl"
    arguments = {"--labels": labels, "--out": tmp_path / "pairs", "--styles": "scenes"}
    arguments |= {"--only": "pixel-art", "--size": 48, "--split-val": 0.3, "--max-alike": -1}
    assert label([str(part) for pair in arguments.items() for part in pair]) == 0

    rows = map(json.loads, (tmp_path / "pairs" / "manifest.jsonl").read_text().splitlines())
    pairs = {row["provenance"]["photo"]: row["split"] for row in rows}
    squares = {row["file"]: row["split"] for row in index_of(bank)["photos"]}
    assert pairs
    assert {name: squares[name] for name in pairs} == pairs


def test_only_what_is_missing_is_made_again(bank_case, copied):
    bank, labels = copied / "bank", copied / "photos" / "labels.jsonl"
    kept = (bank / "cyberpunk.safetensors").stat().st_mtime_ns
    (bank / "pixel-art.safetensors").unlink()

    assert run(*bank_case.bank_arguments(labels, bank)) == 0

    assert (bank / "pixel-art.safetensors").exists()
    assert (bank / "cyberpunk.safetensors").stat().st_mtime_ns == kept


def test_a_changed_photo_or_a_damaged_file_is_not_taken_for_the_old_one(bank_case, copied, capsys):
    bank, labels = copied / "bank", copied / "photos" / "labels.jsonl"
    arguments = bank_case.bank_arguments(labels, bank)
    (bank / "pixel-art.safetensors").unlink()
    photos = bank / "photos.safetensors"
    kept = photos.read_bytes()
    photos.write_bytes(kept[:1000])
    assert run(*arguments) == 2
    assert "photos.safetensors: this file is damaged" in capsys.readouterr().err

    photos.write_bytes(kept)
    shown = copied / "photos" / index_of(bank)["photos"][0]["file"]
    Image.open(shown).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(shown)
    assert run(*arguments) == 2
    assert "holds a bank of other photos" in capsys.readouterr().err


def test_a_photo_of_several_labels_files_has_the_objects_of_all(bank_case, tmp_path, capsys):
    labels, out = bank_case.write_photos(tmp_path / "photos", count=4), tmp_path / "bank"
    more = tmp_path / "more.jsonl"
    row = {"file": "1.png", "word": "table", "width": 60, "height": 48}
    row |= {"segmentation": [[0, 36, 60, 36, 60, 48, 0, 48]]}
    more.write_text(json.dumps(row) + "\n")
    images = ["--images", str(tmp_path / "photos")]
    arguments = bank_case.bank_arguments(labels, out, *images)
    arguments.insert(arguments.index(str(labels)) + 1, str(more))

    assert run(*arguments) == 0
    assert [photo["words"] for photo in index_of(out)["photos"][:2]] == [["dog"], ["cup", "table"]]
    assert load_file(out / "photos.safetensors")["masks"].shape[0] == 5

    more.write_text(json.dumps(row | {"width": 50, "height": 50}) + "\n")
    again = [str(tmp_path / "other") if part == str(out) else part for part in arguments]
    assert run(*again) == 0  # of another aspect: told, and the rest is made
    assert "skipped: " in (told := capsys.readouterr().err)
    assert "the table" in told
    more.write_text(json.dumps(row | {"segmentation": [[0, 40, 60, 40, 60, 48, 0, 48]]}) + "\n")
    assert run(*arguments) == 2  # other outlines make another bank


def test_when_every_row_is_refused_the_first_reason_is_told(bank_case, tmp_path, capsys):
    labels = bank_case.write_photos(tmp_path / "photos", count=2)
    labels.write_text(json.dumps({"file": "/1.png", "word": "dog"}) + "\n")
    assert run(*bank_case.bank_arguments(labels, tmp_path / "bank")) == 2
    assert f"{labels}:1: path '/1.png' is refused" in capsys.readouterr().err


def test_a_photo_that_cannot_be_used_is_named_and_skipped(bank_case, tmp_path, capsys):
    labels = bank_case.write_photos(tmp_path / "photos", count=4)
    (tmp_path / "photos" / "2.png").write_bytes(b"no picture")

    assert run(*bank_case.bank_arguments(labels, tmp_path / "bank")) == 0

    assert len(index_of(tmp_path / "bank")["photos"]) == 3
    assert "2.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (["--labels", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--size", "8"], "--size"),
        (["--test-share", "1.5"], "--test-share"),
        (["--workers", "0"], "--workers"),
        (["--size", "48"], "another size"),
        (["--only", "pixelart"], "pixel-art"),
        (["--photos-only"], "--photos-only"),
        (["--out", "photos"], "photos"),
    ],
)
def test_mistakes_are_one_sentence_and_keep_the_bank(
    bank_case, copied, monkeypatch, capsys, change, part
):
    monkeypatch.chdir(copied)
    before = {path.name: path.stat().st_mtime_ns for path in (copied / "bank").iterdir()}

    assert run(*bank_case.bank_arguments("photos/labels.jsonl", "bank"), *change) == 2

    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert part in error
    assert {path.name: path.stat().st_mtime_ns for path in (copied / "bank").iterdir()} == before
