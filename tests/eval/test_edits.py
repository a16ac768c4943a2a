import numpy as np
import pytest
import torch
from PIL import Image

from eval import rses
from eval.edits import GREY, NO_MAP, RESIZED, EditFinder, load_edit, map_path, parse_edits
from eval.report import html
from regionroute.data.images import read_image, write_image
from regionroute.data.manifest import load_manifest
from regionroute.errors import UserError
from regionroute.files import read_json, read_jsonl


def test_an_edit_goes_by_id_then_by_the_contexts_name(tiny_manifest, tmp_path):
    samples = load_manifest(tiny_manifest).samples
    folder = tmp_path / "edits"
    for name in ("pair-0.png", "0.context.png", "1.context.jpg", "pair-2.webp"):
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (64, 64)).save(folder / name)
    finder = EditFinder({"m": folder}, samples)
    names = [finder.path("m", sample).name for sample in samples]
    assert names == ["pair-0.png", "1.context.jpg", "pair-2.webp", "pair-3.png"]


def test_upper_case_endings_are_found(tiny_manifest, tmp_path):
    samples = load_manifest(tiny_manifest).samples
    folder = tmp_path / "edits"
    folder.mkdir()
    for name in ("pair-0.PNG", "1.context.Jpg", "pair-2.png", "pair-2.PNG", "pair-0.map.PNG"):
        Image.new("RGB", (64, 64)).save(folder / name)
    finder = EditFinder({"m": folder}, samples)
    names = [finder.path("m", sample).name for sample in samples]
    assert names == ["pair-0.PNG", "1.context.Jpg", "pair-2.png", "pair-3.png"]
    assert load_edit(finder.path("m", samples[0]), "pair-0", (64, 64)).region_map is not None
    assert map_path(folder, "pair-1").name == "pair-1.map.png"


def _float_tiff(value):
    grey = np.full((8, 8), 0.5, dtype=np.float32)
    grey[2, 3] = value
    return Image.fromarray(grey)


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (_float_tiff(np.nan), "not finite"),
        (Image.linear_gradient("L").convert("HSV").convert("RGB").rotate(90), None),
        (Image.effect_mandelbrot((8, 8), (-2, -1, 1, 1), 9).convert("L"), None),
        (Image.new("RGB", (8, 8), (9, 120, 200)), "has colours"),
        (Image.new("RGBA", (8, 8), (200, 20, 20, 128)), "has colours"),
        (Image.new("1", (8, 8), 1), None),
        (Image.new("I;16", (8, 8), 40000), None),
    ],
)
def test_an_odd_map_is_skipped_and_named(tmp_path, image, problem):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    image.save(tmp_path / "a.map.png", format="TIFF" if image.mode == "F" else "PNG")
    edit = load_edit(tmp_path / "a.png", "a", (8, 8))
    if problem is None:
        assert edit.remarks == []
        assert torch.isfinite(edit.region_map).all()
        assert 0 <= edit.region_map.min() <= edit.region_map.max() < 1
    else:
        assert edit.region_map is None
        assert [remark.kind for remark in edit.remarks] == [NO_MAP]
        assert problem in edit.remarks[0].text
        assert "a.map.png" in edit.remarks[0].text


def test_a_map_with_nan_costs_only_that_map(tiny_manifest, edits, tmp_path, capsys):
    _float_tiff(np.nan).save(edits["good"] / "pair-1.map.png", format="TIFF")
    out, page = tmp_path / "scores", tmp_path / "report.html"
    arguments = ["--manifest", str(tiny_manifest), "--split", "all", "--out", str(out)]
    arguments += ["--edits", str(edits["good"]), "--report", str(page)]
    assert rses.main(arguments) == 0
    assert "pair-1.map.png: the image holds values that are not finite" in capsys.readouterr().err
    entry = read_json(out / "summary.json")["methods"]["good"]
    assert entry["n_scored"] == 4
    assert entry["slices"]["all"]["attention_iou"]["n"] == 3
    assert entry["remarks"] == {NO_MAP: 1}
    assert page.read_text().count("good: map</span>") == 3
    # A map that is spoiled later, before another report of the same scores.
    _float_tiff(np.nan).save(edits["good"] / "pair-2.map.png", format="TIFF")
    html.write_report(out, page)
    assert "pair-2.map.png: the image holds values that are not finite" in page.read_text()


def test_a_shared_context_needs_ids(tiny_manifest, spoil, tmp_path):
    spoil.row(context="0.context.png")
    samples = load_manifest(tiny_manifest).samples
    folder = tmp_path / "edits"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "0.context.png")
    finder = EditFinder({"m": folder}, samples)
    with pytest.raises(UserError, match=r"2 samples have a context of this name.*pair-1.png"):
        finder.path("m", samples[1])
    assert finder.path("m", samples[2]).name == "pair-2.png"


def test_other_sizes_are_resampled_by_the_stated_rule(tmp_path):
    picture = torch.linspace(0, 1, 50)[None, None, :].expand(3, 40, -1)
    write_image(tmp_path / "a.png", picture)
    edit = load_edit(tmp_path / "a.png", "a", (80, 101))  # 1 % off in shape
    assert edit.image.shape == (3, 80, 101)
    assert [remark.kind for remark in edit.remarks] == [RESIZED]
    assert "50x40 pixels but its context is 101x80" in edit.remarks[0].text
    steps = edit.image[0, 40].diff()
    assert (steps > -1e-3).all()
    with pytest.raises(UserError, match="another shape cannot be compared"):
        load_edit(tmp_path / "a.png", "a", (80, 104))  # 4 % off


def test_grey_edits_are_read_and_told(tmp_path):
    Image.new("L", (8, 8), 90).save(tmp_path / "a.png")
    edit = load_edit(tmp_path / "a.png", "a", (8, 8))
    assert [remark.kind for remark in edit.remarks] == [GREY]
    assert edit.image.shape == (3, 8, 8)
    torch.testing.assert_close(edit.image, torch.full((3, 8, 8), 90 / 255))


@pytest.fixture
def unusual(tiny_manifest, edits):
    """Edits that are a smaller copy, grey, with NaN, missing; and a full mask for the first."""
    folder = edits["good"]
    Image.new("L", (64, 64), 255).save(tiny_manifest / "0.mask.png")
    small = read_image(folder / "pair-1.png")[:, ::2, ::2]
    write_image(folder / "pair-1.png", small)
    Image.open(folder / "pair-2.png").convert("L").save(folder / "pair-2.png")
    (folder / "pair-3.png").unlink()
    values = np.full((64, 64), 0.5, dtype=np.float32)
    values[3, 3] = np.nan
    Image.fromarray(values).save(folder / "pair-3.tif")
    return folder


def test_unusual_input_is_one_line_each_and_counted(unusual, tiny_manifest, tmp_path, capsys):
    out = tmp_path / "scores"
    arguments = ["--manifest", str(tiny_manifest), "--split", "all", "--edits", str(unusual)]
    assert rses.main([*arguments, "--out", str(out)]) == 0
    said = capsys.readouterr().err
    for sentence in (
        "good: pair-0: the mask is full, the background's measures are undefined",
        "pair-1.png: 32x32 pixels but its context is 64x64, resampled to that",
        "pair-2.png: greyscale, read as three equal channels",
        "pair-3.tif: the image holds values that are not finite",
    ):
        assert said.count(sentence) == 1
    for line in ("1 of 4: full mask", "1 of 4: greyscale", "1 of 4: other size", "1 of 4 failed"):
        assert f"good: {line}" in said
    summary = read_json(out / "summary.json")
    entry = summary["methods"]["good"]
    assert entry["remarks"] == {"full mask": 1, "greyscale": 1, "other size": 1}
    assert (entry["n_scored"], entry["n_failed"]) == (3, 1)
    estimates = entry["slices"]["all"]
    assert (estimates["mse_bg"]["n"], estimates["mse_bg"]["n_invalid"]) == (2, 1)
    assert estimates["coverage"]["n"] == 3
    assert "bicubic" in summary["size_rule"]
    assert "full mask: 1 of 4" in (out / "summary.md").read_text()
    kinds = {r["id"]: r.get("remarks") for r in read_jsonl(out / "samples.jsonl")}
    assert kinds["pair-3"] == []  # the last row is the ceiling's
    # Said again when nothing is measured again.
    rses.main([*arguments, "--out", str(out)])
    assert capsys.readouterr().err.count("greyscale, read as") == 1


def test_a_source_with_nan_costs_every_method(tiny_manifest, edits, tmp_path, capsys, spoil):
    values = np.full((64, 64), np.nan, dtype=np.float32)
    Image.fromarray(values).save(tiny_manifest / "1.context.tif")
    spoil.row(context="1.context.tif")
    arguments = ["--manifest", str(tiny_manifest), "--split", "all", "--edits", str(edits["good"])]
    assert rses.main([*arguments, "--out", str(tmp_path / "scores")]) == 0
    said = capsys.readouterr().err
    assert said.count("every method: ") == 1
    assert "1.context.tif: the image holds values that are not finite" in said
    assert "good: 1 of 4 failed" in said


def test_folders_by_name_and_folders_with_an_equals_sign(tmp_path):
    folder = tmp_path / "lr=0.1"
    folder.mkdir()
    assert parse_edits({"ours": folder}) == {"ours": folder}
    assert parse_edits([str(folder)]) == {"lr=0.1": folder}
    assert parse_edits([f"ours={folder}"]) == {"ours": folder}
    assert parse_edits([f"={folder}"]) == parse_edits({"": folder}) == {"lr=0.1": folder}


@pytest.mark.parametrize("item", ["nowhere/lr=0.1", "ours=nowhere/lr=0.1", "nowhere", "ours="])
def test_a_missing_folder_is_named_as_it_was_given(item):
    with pytest.raises(UserError, match=f"^--edits {item}: no such folder"):
        parse_edits([item])
