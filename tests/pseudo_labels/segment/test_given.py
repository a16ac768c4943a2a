import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from pseudo_labels.segment import Segment, merge_words, resize_mask, touching
from pseudo_labels.segment.given import open_photo, read_label_files, read_labels
from regionroute.data.images import write_image
from regionroute.errors import UserError


def write_labels(folder, *rows):
    path = folder / "labels.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return path


def square(top, left, bottom, right, size=(40, 60)):
    mask = torch.zeros(1, *size)
    mask[:, top:bottom, left:right] = 1
    return mask


@pytest.fixture
def folder(tmp_path):
    write_image(tmp_path / "a.png", torch.rand(3, 40, 60))
    write_image(tmp_path / "dog.png", square(5, 5, 20, 20))
    write_image(tmp_path / "cat.png", square(25, 30, 38, 50))
    return tmp_path


def test_both_forms_of_rows_are_read_alike(folder):
    nested = {
        "image": "a.png",
        "objects": [{"word": "dog", "mask": "dog.png"}, {"word": "cat", "mask": "cat.png"}],
        "mask_source": "hand",
    }
    flat = [
        {"file": "a.png", "word": w, "mask": f"{w}.png", "mask_source": "hand"}
        for w in ("dog", "cat")
    ]
    results = []
    for rows in ([nested], flat):
        photos, rejected = read_labels(write_labels(folder, *rows))
        assert not rejected
        (photo,) = photos
        image, segments, bad = open_photo(photo)
        assert image.shape == (3, 40, 60)
        assert not bad
        results.append([(s.word, s.source, s.box, round(s.area, 4)) for s in segments])
    assert (
        results[0]
        == results[1]
        == [
            ("dog", "hand", (5, 5, 20, 20), 0.0938),
            ("cat", "hand", (25, 30, 38, 50), 0.1083),
        ]
    )


def test_file_names_are_relative_to_the_labels_file(folder, monkeypatch):
    path = write_labels(folder, {"file": "./a.png", "word": "dog", "mask": "dog.png"})
    monkeypatch.chdir("/")
    (photo,), _ = read_labels(path)
    assert photo.name == "a.png"
    assert len(open_photo(photo)[1]) == 1


def test_a_photo_of_several_files_has_the_objects_of_all(folder, tmp_path):
    first = write_labels(folder, {"file": "a.png", "word": "dog", "mask": "dog.png"})
    more = tmp_path / "elsewhere" / "more.jsonl"
    more.parent.mkdir()
    rows = {"file": "a.png", "word": "cat", "mask": "cat.png"}, {"file": "a.png", "mask": "dog.png"}
    more.write_text("".join(json.dumps(row) + "\n" for row in rows))

    photos, rejected = read_label_files([first, more], folder)
    assert [item.word for item in photos[0].objects] == ["dog", "cat"]
    assert len(photos) == len(rejected) == 1
    assert "elsewhere" in rejected[0].reason
    again, _ = read_label_files([first, first, more], folder)
    assert [item.word for item in again[0].objects] == ["dog", "cat"]


def test_facts_of_the_photo_are_kept(folder):
    row = {"file": "a.png", "word": "dog", "mask": "dog.png", "licence": "CC0", "origin": "here"}
    (photo,), _ = read_labels(write_labels(folder, row))
    assert dict(photo.facts) == {"licence": "CC0", "origin": "here"}


def test_masks_of_one_word_become_one_segment(folder):
    rows = [
        {"file": "a.png", "word": word, "mask": mask}
        for word, mask in (("dog", "dog.png"), ("Dog", "cat.png"))
    ]
    (photo,), _ = read_labels(write_labels(folder, *rows))
    (segment,) = merge_words(open_photo(photo)[1])
    assert (segment.word, segment.count, segment.box) == ("dog", 2, (5, 5, 38, 50))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"file": "a.png"', "labels.jsonl:2: this line is not JSON"),
        ("[1, 2]", "labels.jsonl:2: .*JSON object"),
        ({"word": "dog", "mask": "dog.png"}, "labels.jsonl:2: .*'image' or by 'file'"),
        ({"image": "a.png"}, "'objects' must be a list"),
        ({"image": "a.png", "objects": []}, "'objects' must be a list"),
        ({"image": "a.png", "objects": ["dog"]}, "an object must be written"),
        ({"image": 3, "objects": [{"word": "dog", "mask": "dog.png"}]}, "name must be text"),
        ({"file": "a.png", "mask": "dog.png"}, "needs 'word'"),
        ({"file": "a.png", "word": "  ", "mask": "dog.png"}, "needs 'word'"),
        ({"file": "a.png", "word": "...", "mask": "dog.png"}, "has no letters"),
        ({"file": "a.png", "word": "dog", "mask": None}, "needs 'mask'"),
        ({"file_name": "a.png", "text": "dog"}, "'attn_list' must be a list"),
        ({"file_name": "a.png", "attn_list": [["dog"]]}, "must hold pairs"),
        ({"file": "a.png", "word": "dog", "bbox": [1, 2]}, "'bbox' must be"),
        ({"file": "a.png", "word": "dog", "mask": "dog.png", "instances": "2"}, "whole number"),
    ],
)
def test_a_bad_row_is_rejected_and_the_rest_goes_on(folder, row, message):
    good = {"file": "a.png", "word": "dog", "mask": "dog.png"}
    photos, (rejection,) = read_labels(write_labels(folder, good, row, {**good, "word": "cat"}))
    assert [item.word for item in photos[0].objects] == ["dog", "cat"]
    assert rejection.line == 2
    assert "\n" not in rejection.reason
    assert re.search(message, rejection.reason)


def test_a_mask_that_cannot_be_used_leaves_the_other_objects(folder):
    write_image(folder / "small.png", torch.ones(1, 10, 10))
    write_image(folder / "empty.png", torch.full((1, 40, 60), 0.4))
    (folder / "text.png").write_text("no picture")
    masks = ["dog.png", "none.png", "small.png", "empty.png", "text.png"]
    rows = [{"file": "a.png", "word": f"w{i}", "mask": mask} for i, mask in enumerate(masks)]
    (photo,), _ = read_labels(write_labels(folder, *rows))
    _, segments, rejected = open_photo(photo)
    assert [segment.word for segment in segments] == ["w0"]
    reasons = [rejection.reason for rejection in rejected]
    for reason, words in zip(
        reasons, ["no such mask", "10x10", "mask is empty", "damaged"], strict=True
    ):
        assert words in reason
    assert [rejection.word for rejection in rejected] == ["w1", "w2", "w3", "w4"]


def test_a_missing_labels_file_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_labels(tmp_path / "labels.jsonl")


def test_photos_of_any_kind_open(folder):
    rgb = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    picture = Image.fromarray(rgb)
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    picture.convert("RGBA").save(folder / "alpha.png")
    picture.convert("L").save(folder / "grey.png")
    picture.convert("P").save(folder / "moving.gif", save_all=True, append_images=[picture])
    Image.fromarray(rgb[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying down, to be shown upright: 60 x 40 becomes 40 x 60
    picture.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.jpg", exif=exif)
    names = ["cmyk.jpg", "alpha.png", "grey.png", "moving.gif", "deep.png", "turned.jpg"]
    rows = [{"file": name, "word": "dog", "mask": "dog.png"} for name in names]
    photos, _ = read_labels(write_labels(folder, *rows))
    for photo in photos:
        image, segments, rejected = open_photo(photo)
        assert image.shape == (3, 40, 60), photo.name
        assert len(segments) == 1
        assert not rejected


class TestMasks:
    def test_resizing_keeps_pixels_that_were_mostly_inside(self):
        half = resize_mask(square(10, 10, 30, 40), (20, 30))
        assert torch.equal(half, square(5, 5, 15, 20, (20, 30)))
        assert set(half.unique().tolist()) == {0.0, 1.0}

    def test_resizing_away_the_last_pixel_is_refused(self):
        with pytest.raises(UserError, match="no pixel left at 6x4"):
            resize_mask(square(3, 3, 5, 5), (4, 6))

    def test_touching_means_side_by_side_or_overlapping(self):
        left = square(5, 5, 20, 20)
        assert touching(left, square(5, 20, 20, 30))
        assert touching(left, square(5, 15, 20, 30))
        assert not touching(left, square(5, 21, 20, 30))

    def test_words_merge_whatever_their_case_and_keep_their_order(self):
        masks = [square(0, i, 5, i + 1) for i in range(3)]
        segments = [Segment(w, m) for w, m in zip(["Dog", "cat", "dog"], masks, strict=True)]
        merged = merge_words(segments)
        assert [(s.word, s.count) for s in merged] == [("Dog", 2), ("cat", 1)]
        assert torch.equal(merged[0].mask, masks[0] + masks[2])
