"""Instance files of COCO: each annotation is used or named, whatever frame it is in."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from pseudo_labels.segment.given import open_photo, read_labels
from regionroute.errors import UserError

SQUARE = [100, 100, 300, 100, 300, 300, 100, 300]
EXPECTED = (100, 100, 300, 300)


@pytest.fixture
def folder(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (320, 320, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg")
    return tmp_path


def coco(folder, *annotations, **image):
    base = {"image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": [SQUARE]}
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 320, "height": 320} | image],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [
            {"id": n} | base | annotation if isinstance(annotation, dict) else annotation
            for n, annotation in enumerate(annotations, 1)
        ],
    }
    path = folder / "coco.json"
    path.write_text(json.dumps(content))
    return path


def boxes(path):
    """The boxes of all masks, and all reasons."""
    photos, rejected = read_labels(path)
    found, reasons = [], [r.reason for r in rejected]
    for photo in photos:
        _, segments, bad = open_photo(photo)
        found += [segment.box for segment in segments]
        found += [item.box for item in photo.objects if item.box]
        reasons += [r.reason for r in bad]
    return found, reasons


@pytest.mark.parametrize("scale", [1, 2, 0.5])
def test_coordinates_of_a_scaled_image_are_scaled(folder, scale):
    side = int(320 * scale)
    scaled = [scale * value for value in SQUARE]
    box = [scale * value for value in (100, 100, 200, 200)]
    annotations = [{"segmentation": [scaled]}, {"segmentation": [], "bbox": box}]
    assert boxes(coco(folder, *annotations, width=side, height=side)) == ([EXPECTED] * 2, [])


def test_another_aspect_is_refused(folder):
    annotations = [{}, {"segmentation": [], "bbox": [100, 100, 200, 200]}]
    found, reasons = boxes(coco(folder, *annotations, width=640, height=480))
    assert found == []
    assert len(reasons) == 2
    assert all("an image of 640x480 pixels, this one has 320x320" in r for r in reasons)


def test_jsonl_rows_state_sizes_too(folder):
    row = {"image": "a.jpg", "width": 640, "height": 640}
    row["objects"] = [
        {"word": "dog", "segmentation": [[2 * value for value in SQUARE]]},
        {"word": "cat", "bbox": [200, 200, 400, 400]},
    ]
    (folder / "labels.jsonl").write_text(json.dumps(row))
    assert boxes(folder / "labels.jsonl") == ([EXPECTED] * 2, [])
    (folder / "labels.jsonl").write_text(json.dumps(row | {"height": -1}))
    found, reasons = boxes(folder / "labels.jsonl")
    assert found == []
    assert all("two whole numbers of pixels" in reason for reason in reasons)


def test_crowds_are_taken(folder):
    mask = np.zeros((320, 320), np.uint8)
    mask[100:300, 100:300] = 1
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]]).astype(int)))
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    crowd = {"iscrowd": 1, "segmentation": {"size": [320, 320], "counts": counts}}
    assert boxes(coco(folder, crowd)) == ([EXPECTED], [])


@pytest.mark.parametrize("empty", [[], {}, None, ""])
def test_a_box_without_an_outline_is_used(folder, empty):
    box = {"segmentation": empty, "bbox": [100, 100, 200, 200]}
    assert boxes(coco(folder, box)) == ([EXPECTED], [])


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        ({"category_id": 77}, "annotation 2: its category_id 77 is not among the 'categories'"),
        ({"image_id": 9}, "annotation 2: its image_id 9 is not among the 'images'"),
        ({"image_id": [1]}, "its image_id"),
        ({"segmentation": [], "bbox": []}, "neither 'segmentation' nor 'bbox'"),
        ({"segmentation": [[1, 2, 3]]}, "x and y must come in pairs"),
        ({"segmentation": {"size": [64, 64], "counts": [1, 2, 3]}}, "sum to 6"),
        ({"segmentation": {"size": [64, 64], "counts": [-5, 4101]}}, "run length -5"),
        ({"segmentation": {"size": 5, "counts": [25]}}, "'size' is 5"),
        ({"segmentation": [], "bbox": [1, 2]}, "'bbox' must be"),
        (5, "annotation number 2: it must be an object"),
        (None, "annotation number 2: it must be an object"),
    ],
)
def test_one_bad_annotation_costs_itself_alone(folder, annotation, reason):
    found, reasons = boxes(coco(folder, {}, annotation, {}))
    assert found == [EXPECTED] * 2
    (told,) = reasons
    assert reason in told
    assert "\n" not in told


def test_an_annotation_without_keys_costs_itself_alone(folder):
    path = coco(folder, {}, {}, {})
    content = json.loads(path.read_text())
    del content["annotations"][1]["category_id"], content["annotations"][2]["image_id"]
    path.write_text(json.dumps(content))
    found, reasons = boxes(path)
    assert found == [EXPECTED]
    assert ["has no 'category_id'" in reasons[0], "has no 'image_id'" in reasons[1]] == [True] * 2


def test_images_that_are_not_used_are_named(folder):
    path = coco(folder, {})
    content = json.loads(path.read_text())
    content["images"] += [{"id": 2, "file_name": "b.jpg"}, {"id": 1, "file_name": "c.jpg"}, 5]
    path.write_text(json.dumps(content))
    found, reasons = boxes(path)
    assert found == [EXPECTED]
    assert "b.jpg has no annotation" in reasons[0]
    assert "its id is that of an image before" in reasons[1]
    assert "has no 'file_name'" in reasons[2]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("images\\a.jpg", "write it with forward slashes, 'images/a.jpg'"),
        ("C:\\images\\a.jpg", "must be relative to the labels' folder"),
        ("/etc/a.jpg", "must be relative to the labels' folder"),
        ("../a.jpg", "must stay inside the labels' folder"),
        ("link/a.jpg", "leaves the labels' folder through a link"),
        ("a\0.jpg", "names no file"),
    ],
)
def test_paths_follow_the_rule_of_manifests(folder, tmp_path_factory, name, reason):
    outside = tmp_path_factory.mktemp("outside")
    Image.new("RGB", (320, 320)).save(outside / "a.jpg")
    (folder / "link").symlink_to(outside)
    found, reasons = boxes(coco(folder, {}, file_name=name))
    assert found == []
    assert reason in reasons[0]
    row = {"file": "a.jpg", "word": "dog", "mask": name}
    (folder / "labels.jsonl").write_text(json.dumps(row))
    assert reason in boxes(folder / "labels.jsonl")[1][0]


@pytest.mark.parametrize("content", ["[]", "{}", "5", '{"images": 5}', '{"images": []}'])
def test_other_files_are_refused(folder, content):
    (folder / "coco.json").write_text(content)
    with pytest.raises(UserError, match="no instances file of COCO, it lacks"):
        read_labels(folder / "coco.json")


def test_masks_of_a_photo_turned_by_exif(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = np.zeros((40, 60, 3), np.uint8)
    image[5:15, 10:40] = 255
    Image.fromarray(image).save(folder / "a.jpg", exif=exif, quality=100)
    square = [10, 5, 40, 5, 40, 15, 10, 15]
    (photo,), _ = read_labels(coco(folder, {"segmentation": [square]}, width=60, height=40))
    pixels, (segment,), rejected = open_photo(photo)
    assert rejected == []
    assert pixels.shape == (3, 60, 40)
    assert torch.equal(pixels[0] > 0.5, segment.mask[0] > 0)
