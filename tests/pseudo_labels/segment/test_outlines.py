"""Outlines: decoded only after they were checked, and moved to the frame of the upright image."""

import json
import time

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from pseudo_labels.segment.frame import Frame, match_frame
from pseudo_labels.segment.outlines import corner_box, decode_runs, outline_mask
from regionroute.data.image_files import ImageHeader
from regionroute.errors import UserError

SIZE = (40, 60)
HEADER = ImageHeader(SIZE)
INSIDE = np.zeros(SIZE, np.uint8)
INSIDE[10:30, 20:50] = 1
SQUARE = [20, 10, 50, 10, 50, 30, 20, 30]


def runs(mask):
    flat = np.asarray(mask).T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]]).astype(int)))
    return np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()


def text(mask):
    return coco_mask.encode(np.asfortranarray(mask))["counts"].decode()


@pytest.mark.parametrize("seed", range(20))
def test_run_lengths_are_those_of_pycocotools(seed):
    rng = np.random.default_rng(seed)
    size = tuple(rng.integers(1, 70, 2).tolist())
    mask = (rng.random(size) < rng.random()).astype(np.uint8)
    for counts in (runs(mask), text(mask), [float(n) for n in runs(mask)]):
        assert np.array_equal(decode_runs(counts, size), mask == 1)


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ([1, 2, 3], "sum to 6, an image of 60x40 pixels has 2400"),
        ([2400, 1], "sum to 2401"),
        ([], "sum to 0"),
        ([-5, 2405], "run length -5"),
        ([10**12], "sum to 1000000000000"),
        ([10**300], "sum to far more"),
        ([0.5, 2399.5], "run length 0.5"),
        ([float("nan"), 2400], "run length nan"),
        ([float("inf")], "run length inf"),
        ([True, 2399], "run length True"),
        (["2400"], "run length '2400'"),
        ([[2400]], r"run length \[2400\]"),
        (7, "'counts' is 7"),
        (None, "'counts' is None"),
        ("", "sum to 0"),
        ("ü", "no text of COCO's form"),
        ("o" * 10_000, "no text of COCO's form"),
        ("P", "cut off"),
    ],
)
def test_run_lengths_that_are_none(counts, reason):
    with pytest.raises(UserError, match=reason):
        outline_mask({"size": list(SIZE), "counts": counts}, HEADER)


@pytest.mark.parametrize("size", [5, [40], [0, 60], [-40, 60], ["40", 60], [1e300, 1], None, {}])
def test_sizes_that_are_none(size):
    with pytest.raises(UserError, match=r"'size'|stated size"):
        outline_mask({"size": size, "counts": [2400]}, HEADER)


def test_a_huge_size_is_refused_before_it_takes_memory():
    side = 900_000
    outline = {"size": [side, side], "counts": [side * side]}
    start = time.monotonic()
    with pytest.raises(UserError, match="too large"):
        outline_mask(outline, ImageHeader((90, 90)))
    assert time.monotonic() - start < 1


@pytest.mark.parametrize(
    "outline",
    [
        [SQUARE],
        SQUARE,
        [[x, y] for x, y in zip(SQUARE[::2], SQUARE[1::2], strict=True)],
        [[1, 1], SQUARE, [5, 5, 6, 6]],
        {"size": [40, 60], "counts": runs(INSIDE)},
        {"size": [40, 60], "counts": text(INSIDE)},
        {"size": [80, 120], "polygons": [[2 * v for v in SQUARE]]},
        {"size": [20, 30], "polygons": [[v / 2 for v in SQUARE]]},
        {"size": [80, 120], "counts": runs(INSIDE.repeat(2, 0).repeat(2, 1))},
        {"size": [20, 30], "counts": runs(INSIDE[::2, ::2])},
    ],
)
def test_the_same_object_in_every_form_and_scale(outline):
    mask = outline_mask(outline, HEADER)
    assert torch.equal(mask, torch.from_numpy(INSIDE)[None].float())


@pytest.mark.parametrize(
    ("outline", "reason"),
    [
        ("text", "must be polygons"),
        ({}, "'counts' is missing"),
        ([["a", "b"]], "must be polygons"),
        ([[1, 2, 3, 4, 5, None]], "must be polygons"),
        ([[True] * 6], "must be polygons"),
        ([[float("nan")] * 6], "must be polygons"),
        ([[1e300] * 6], "must be polygons"),
        ([[10**400] * 6], "must be polygons"),
        ([[1, 2, 3, 4]], "no polygon has 3 corners"),
        ([[1, 2], [3, 4]], "no polygon has 3 corners"),
        ([[1, 2, 3, 4, 5, 6, 7]], "x and y must come in pairs"),
        ([[200, 200, 600, 200, 600, 600]], "in an image of 60x40 pixels"),
        ([[-99, 1, 5, 5, 5, 1]], "of another image or size"),
        ([[0.1, 0.1, 0.9, 0.1, 0.9, 0.9]], "shares of the image"),
        ({"size": [60, 60], "polygons": [SQUARE]}, "60x60 pixels, this one has 60x40"),
        ({"size": [60, 40], "polygons": [SQUARE]}, "40x60 pixels, this one has 60x40"),
        ({"size": [60, 40], "counts": [2400]}, "40x60 pixels, this one has 60x40"),
    ],
)
def test_outlines_that_are_none(outline, reason):
    with pytest.raises(UserError, match=reason):
        outline_mask(outline, HEADER)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("scale", [1, 2])
def test_coordinates_of_the_stored_image_are_turned_as_exif_says(tmp_path, orientation, scale):
    """What Pillow makes of an image turned by EXIF is what we make of its coordinates."""
    stored = np.kron(INSIDE, np.ones((scale, scale), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(INSIDE * 255).save(tmp_path / "a.png", exif=exif)
    from regionroute.data.image_files import image_header
    from regionroute.data.masks import read_mask

    header, expected = image_header(tmp_path / "a.png"), read_mask(tmp_path / "a.png")
    assert header == ImageHeader((60, 40), orientation)
    size = [40 * scale, 60 * scale]
    for outline in (
        {"size": size, "counts": runs(stored)},
        {"size": size, "polygons": [[scale * v for v in SQUARE]]},
    ):
        assert torch.equal(outline_mask(outline, header), expected)
    frame = match_frame((40 * scale, 60 * scale), header)
    y0, x0, y1, x1 = frame.box((10 * scale, 20 * scale, 30 * scale, 50 * scale))
    assert expected[0, y0:y1, x0:x1].all()
    assert (y1 - y0) * (x1 - x0) == expected.sum()
    upright = [{"size": [60, 40], "counts": runs(expected[0].byte().numpy())}]
    assert torch.equal(outline_mask(upright[0], header), expected)


@pytest.mark.parametrize(
    ("stated", "size"),
    [((427, 640), (214, 320)), ((214, 320), (427, 640)), ((1080, 1920), (144, 256))],
)
def test_sizes_that_were_rounded_are_the_same_aspect(stated, size):
    assert match_frame(stated, ImageHeader(size)) == Frame(stated, size)


@pytest.mark.parametrize(
    "bbox",
    [[1, 2, 3], "x", [1, 2, 0, 5], [1, 2, None, 4], 7, [0, 0, 1e400, 5], [0, 0, 0.5, 0.5], None],
)
def test_boxes_that_are_none(bbox):
    with pytest.raises(UserError, match="'bbox' must be"):
        corner_box(json.loads(json.dumps(bbox)))
