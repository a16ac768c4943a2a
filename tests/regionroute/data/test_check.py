"""`regionroute check` finds each kind of mistake, all of them in one go, and draws the pairs."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from regionroute.cli import check as check_command
from regionroute.cli.check import main
from regionroute.data import check
from regionroute.data.check import check_manifest, contact_sheet
from regionroute.data.images import read_image
from regionroute.data.manifest import Manifest, load_manifest
from regionroute.errors import UserError


def _rows(folder):
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def _change(folder, number, **changes):
    """Changes keys of one row; keys of its region are given as region_<key>."""
    rows = _rows(folder)
    for key, value in changes.items():
        row = rows[number]["regions"][0] if key.startswith("region_") else rows[number]
        row[key.removeprefix("region_")] = value
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _repaint(path, where, value):
    pixels = np.array(Image.open(path))
    pixels[where] = value
    Image.fromarray(pixels).save(path)


def test_a_right_manifest(tiny_manifest):
    report = check_manifest(tiny_manifest)
    assert report.problems == []
    assert report.counts == {
        "samples": 4,
        "regions": 4,
        "splits": {"train": 3, "val": 1},
        "objects": {"square": 2, "circle": 2},
        "styles": {"pixel-art": 2, "line-art": 2},
        "flags": {},
    }


def _missing_context(folder):
    (folder / "1.context.png").unlink()


def _damaged_target(folder):
    data = (folder / "1.target.png").read_bytes()
    (folder / "1.target.png").write_bytes(data[: len(data) // 2])


def _small_target(folder):
    Image.new("RGB", (32, 64)).save(folder / "1.target.png")


def _small_mask(folder):
    Image.new("L", (64, 32), 255).save(folder / "1.mask.png")


def _missing_mask(folder):
    (folder / "1.mask.png").unlink()


def _empty_mask(folder):
    Image.new("L", (64, 64), 127).save(folder / "1.mask.png")


def _changed_background(folder):
    _repaint(folder / "1.target.png", (0, 5, 1), 255)


def _unchanged_target(folder):
    (folder / "1.target.png").write_bytes((folder / "1.context.png").read_bytes())


def _escaping_link(folder):
    (folder / "1.mask.png").rename(folder.parent / "mask.png")
    (folder / "1.mask.png").symlink_to(folder.parent / "mask.png")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_missing_context, r"pair-1: .*1\.context\.png: no such image"),
        (_damaged_target, r"pair-1: .*1\.target\.png: this image cannot be read"),
        (_small_target, r"pair-1: .*the target is 32x64 pixels but its context is 64x64"),
        (_small_mask, r"pair-1: .*the mask is 64x32 pixels but its image is 64x64"),
        (_missing_mask, r"pair-1: .*1\.mask\.png: no such mask"),
        (_empty_mask, r"pair-1: .*1\.mask\.png: the mask is empty"),
        (_changed_background, r"pair-1: the target differs .* in 1 pixels by up to \d+ of 255"),
        (_unchanged_target, r"pair-1: the target equals the context inside .*1\.mask\.png"),
        (_escaping_link, r"through a link"),
    ],
)
def test_wrong_files_are_found(tiny_manifest, spoil, told):
    spoil(tiny_manifest)
    problems = check_manifest(tiny_manifest).problems
    assert len(problems) == 1
    assert re.search(told, problems[0]), problems[0]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"region_box": [0, 0, 65, 64]}, "is not within the 64x64 image"),
        ({"region_box": [5, 5, 5, 9]}, "is not within"),
        ({"region_box": [0, 0, 2, 2]}, "does not touch its mask"),
        ({"prompt": "make the dog in pixel-art style"}, "'circle' is not in it"),
        ({"prompt": "make the circle nice"}, "'pixel-art' is not in it"),
        ({"prompt": "the circle by the circle in pixel-art"}, "'circle' is in it 2 times"),
        ({"region_object_span": [900, 910], "region_style_span": [19, 28]}, "marks nothing"),
        ({"region_object_span": [0, 4], "region_style_span": [19, 28]}, "'make', but the object"),
        ({"region_object_span": [9, 14], "region_style_span": [19, 28]}, "'circl', but the object"),
        ({"region_object_span": [9, 15], "region_style_span": [9, 15]}, "'circle', but the style"),
        ({"region_object_span": [9, 15], "region_style_span": [19, 24]}, "'pixel', but the style"),
        (
            {"region_style": "line-art", "region_object_span": [9, 15]}
            | {"region_style_span": [19, 28]},
            "'pixel-art', but the style is 'line-art'",
        ),
        ({"region_score": 1.5}, "score 1.5 of 'circle' is not between 0 and 1"),
        ({"region_score": -0.1}, "score -0.1 of 'circle' is not between 0 and 1"),
    ],
)
def test_wrong_rows_are_found(tiny_manifest, changes, told):
    _change(tiny_manifest, 1, **changes)
    problems = check_manifest(tiny_manifest).problems
    assert len(problems) == 1
    assert problems[0].startswith("pair-1: ")
    assert told in problems[0]


def test_a_style_may_have_words_of_its_own(tiny_manifest):
    spans = {"region_object_span": [9, 15], "region_style_span": [19, 24]}
    _change(tiny_manifest, 1, prompt="make the circle in 8-bit style", **spans)
    assert check_manifest(tiny_manifest).problems == []
    spans = {"region_object_span": [9, 15], "region_style_span": [23, 28]}
    words = {"style_words": "8-bit"}
    _change(tiny_manifest, 1, prompt="turn the Circle into an 8-bit image", **spans)
    assert len(check_manifest(tiny_manifest).problems) == 1
    spans["region_style_span"] = [24, 29]
    _change(tiny_manifest, 1, provenance=words, **spans)
    assert check_manifest(tiny_manifest).problems == []


def test_a_restyled_whole_image_must_differ(tiny_manifest):
    _change(tiny_manifest, 1, regions=[], prompt="make the image in pixel-art style")
    assert check_manifest(tiny_manifest).problems == []
    _unchanged_target(tiny_manifest)
    assert check_manifest(tiny_manifest).problems == [
        "pair-1: the target equals the context, so the pair shows no edit"
    ]


def test_the_target_is_free_where_there_are_no_regions(tiny_manifest):
    _change(tiny_manifest, 1, regions=[], prompt="make the image in pixel-art style")
    _changed_background(tiny_manifest)
    assert check_manifest(tiny_manifest).problems == []


def test_nothing_stops_at_the_first_problem(tiny_manifest):
    _missing_context(tiny_manifest)
    _change(tiny_manifest, 0, prompt="nothing")
    with (tiny_manifest / "manifest.jsonl").open("a") as file:
        file.write("{broken\n")
    (tiny_manifest / "2.mask.png").unlink()
    (tiny_manifest / "2.target.png").unlink()
    report = check_manifest(tiny_manifest)
    assert report.counts["samples"] == 4
    found = [problem.partition(": ")[0] for problem in report.problems]
    assert found == [f"{tiny_manifest}/manifest.jsonl:5", "pair-0", "pair-1", "pair-2", "pair-2"]


def test_the_command_tells_counts_and_problems(tiny_manifest, capsys):
    assert main([str(tiny_manifest)]) == 0
    out = capsys.readouterr().out
    assert "samples:   4" in out
    assert "styles:    pixel-art 2, line-art 2" in out
    assert "problems:  0" in out
    _empty_mask(tiny_manifest)
    assert main([str(tiny_manifest / "manifest.jsonl")]) == 1
    out = capsys.readouterr().out
    assert "problems:  1" in out
    assert "the mask is empty" in out


def test_a_long_list_is_cut(tiny_manifest, capsys, monkeypatch):
    monkeypatch.setattr(check_command, "MAX_PRINTED", 1)
    _missing_context(tiny_manifest)
    _change(tiny_manifest, 0, prompt="nothing")
    assert main([str(tiny_manifest)]) == 1
    assert "... and 1 more" in capsys.readouterr().out
    assert main([str(tiny_manifest), "--all"]) == 1
    assert "more" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["{folder}/nowhere"],
        ["{folder}/0.target.png"],
        ["{folder}", "--limit", "0"],
        ["{folder}", "--sheet", "{folder}/sheet.jpg"],
        ["{folder}", "--sheet", "{folder}/0.mask.png/sheet.png"],
    ],
)
def test_bad_input_is_one_sentence(tiny_manifest, capsys, arguments):
    assert main([part.format(folder=tiny_manifest) for part in arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_no_samples(tmp_path, capsys):
    (tmp_path / "manifest.jsonl").write_text("\n")
    assert main([str(tmp_path)]) == 1
    assert "holds no samples" in capsys.readouterr().out
    assert main([str(tmp_path), "--sheet", str(tmp_path / "sheet.png")]) == 2


def test_the_sheet_shows_context_masks_and_target(tiny_manifest, capsys):
    sheet = tiny_manifest / "sheet.png"
    assert main([str(tiny_manifest), "--sheet", str(sheet)]) == 0
    assert f"sheet:     {sheet}" in capsys.readouterr().out
    image, side = read_image(sheet), check.CELL
    assert image.shape[1:] == (
        4 * (side + 2 * check.LINE + check.GAP) + check.GAP,
        3 * (side + 6) + 6,
    )
    # Row 1: 64 px pictures doubled and centred in cells of 160; the object is a circle at (32, 26).
    top = check.GAP + (side + 2 * check.LINE + check.GAP) + 2 * check.LINE + (side - 128) // 2
    lefts = [check.GAP + column * (side + check.GAP) + (side - 128) // 2 for column in range(3)]
    middles = [image[:, top + 64, left + 52] for left in lefts]
    corners = [image[:, top + 2, left + 2] for left in lefts]
    assert torch.allclose(middles[0], torch.tensor([200, 110, 40]) / 255)
    assert torch.allclose(middles[2], torch.tensor([40, 220, 90]) / 255)
    tint = 0.65 * middles[0] + 0.35 * torch.tensor(check.TINTS[0])
    assert torch.allclose(middles[1], tint, atol=1 / 255)
    assert torch.allclose(corners[1], 0.3 * corners[0], atol=1 / 255)
    assert torch.equal(corners[0], corners[2])


def test_the_sheet_is_limited_and_survives_damage(tiny_manifest):
    _missing_context(tiny_manifest)
    manifest = load_manifest(tiny_manifest)
    contact_sheet(manifest, tiny_manifest / "sheet.png", limit=2)
    two = read_image(tiny_manifest / "sheet.png")
    assert two.shape[1] == 2 * (check.CELL + 2 * check.LINE + check.GAP) + check.GAP
    contact_sheet(manifest, tiny_manifest / "sheet.png")
    with pytest.raises(UserError, match="no samples"):
        contact_sheet(Manifest(tiny_manifest, []), tiny_manifest / "none.png")
