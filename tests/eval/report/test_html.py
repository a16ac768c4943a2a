import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from eval import rses
from eval.encoders.features import LPIPS_VARIABLE
from eval.report import html as report
from eval.report.html import choose_samples, write_report
from eval.report.images import (
    MAX_SIDE,
    change_map,
    data_address,
    heat_colours,
    mask_outline,
    overlay,
)
from regionroute.errors import UserError


@pytest.fixture
def scores(tiny_manifest, edits, tmp_path, monkeypatch):
    """The scores of the two methods, with one edit missing."""
    monkeypatch.delenv(LPIPS_VARIABLE, raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "no-hub"))
    (edits["half"] / "pair-3.png").unlink()
    arguments = ["--manifest", str(tiny_manifest), "--split", "all"]
    arguments += ["--edits", f"half={edits['half']}", "--edits", f"good={edits['good']}"]
    assert rses.main([*arguments, "--out", str(tmp_path / "scores")]) == 0
    return tmp_path / "scores"


def decode(address):
    return Image.open(io.BytesIO(base64.b64decode(address.split(",")[1])))


def test_one_file_with_everything_in_it(scores, tmp_path, tiny_manifest):
    out = tmp_path / "report.html"
    notes = [{"label": "training <each>", "value": 12}]
    write_report(scores, out, title="A & B", notes=notes)
    html = out.read_text(encoding="utf-8")
    # Nothing is fetched from anywhere: every source is in the file, no link leaves the page.
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]+"', html)
    assert "@import" not in html
    assert "url(" not in html
    pictures = re.findall(r'src="(data:image/[^"]+)"', html)
    # Four samples: source, object, target, two edits with their changes (one missing), one map.
    assert len(pictures) == 4 * 8 - 2
    assert html.count('class="missing"') == 1
    assert decode(pictures[0]).size == (64, 64)
    expected = np.asarray(Image.open(tiny_manifest / "0.context.png"))
    np.testing.assert_array_equal(np.asarray(decode(pictures[0])), expected)
    assert "<title>A &amp; B</title>" in html
    assert "training &lt;each&gt;" in html
    assert "Not scored" in html
    assert "no such image" in html
    assert "clearly better in" in html


def test_the_page_opens_with_the_plot_and_the_worst_cases(scores, tmp_path):
    write_report(scores, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert html.count('<svg class="plot"') == 1
    assert html.index('<svg class="plot"') < html.index("All numbers")
    chosen = re.search(r'<select id="sort-metric">.*?</select>', html, re.DOTALL)[0]
    assert re.findall(r'value="(\w+)" data-better="\w+" selected', chosen) == ["in_mask_ratio"]
    assert '<option value="worst">' in html
    assert "half: change" in html
    assert "an edit of another size than its context is resampled" in html


def test_remarks_and_definitions_are_on_the_page(scores, tmp_path):
    summary = json.loads((scores / "summary.json").read_text())
    summary["methods"]["half"]["remarks"] = {"greyscale": 2}
    summary["metrics"]["mse_bg"]["definition"] += "; measured by hand"
    (scores / "summary.json").write_text(json.dumps(summary))
    write_report(scores, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "half: 2 of 4 edits: greyscale." in html
    assert "measured by hand" in html


def test_a_change_map_is_bright_where_the_edit_changed():
    source, mask = torch.full((3, 64, 64), 0.5), torch.zeros(1, 64, 64)
    mask[:, 8:24, 8:24] = 1
    edit = source.clone()
    edit[1, 40:56, 40:56] += 0.4
    picture = change_map(source, edit, mask)
    assert picture.shape == (3, 224, 224)
    assert picture[:, 168, 168].mean() > picture[:, 56, 168].mean() + 0.3
    torch.testing.assert_close(picture[:, 56, 168], picture[:, 56, 56])  # unchanged is dark
    half = torch.nn.functional.interpolate(edit[None], (32, 32))[0]
    assert change_map(source, half, mask).shape == (3, 224, 224)


def test_rows_carry_the_numbers_for_sorting(scores, tmp_path):
    write_report(scores, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    rows = [
        json.loads(text.replace("&#34;", '"').replace("&amp;", "&"))
        for text in re.findall(r'data-row="([^"]+)"', html)
    ]
    assert [row["place"] for row in rows] == [0, 1, 2, 3]
    assert rows[0]["values"]["half"]["in_mask_ratio"] == pytest.approx(0.25, abs=0.01)
    assert rows[3]["values"]["half"] == {}
    assert rows[0]["styles"] == ["pixel-art"]


def test_what_comes_from_data_is_escaped(scores, tmp_path):
    bad = "</script><script>alert(1)</script>"
    text = (scores / "samples.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        line["prompt"] = line["flags"] = [bad]
        line["prompt"] = bad
    (scores / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_report(scores, tmp_path / "report.html", title=bad)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "alert(1)" in html
    assert bad not in html
    assert html.count("<script>") == 1


def test_the_codec_is_a_reference_row(scores, tmp_path):
    estimate = {"mean": 0.0123, "low": None, "high": None, "n": 4, "n_invalid": 0}
    codec = {"samples": 4, "slices": {"all": {"mse_bg": estimate}}}
    (tmp_path / "codec.json").write_text(json.dumps(codec))
    arguments = ["--scores", str(scores), "--out", str(tmp_path / "report.html")]
    assert report.main([*arguments, "--codec", str(tmp_path / "codec.json")]) == 0
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "through the autoencoder and back" in html
    assert "0.0123" in html
    write_report(scores, tmp_path / "again.html", notes=[{"codec": codec}])
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == html


def test_the_scores_may_move_with_their_pictures(scores, tmp_path):
    moved = tmp_path.parent / f"{tmp_path.name}-moved"
    tmp_path.rename(moved)
    write_report(moved / "scores", moved / "report.html")
    html = (moved / "report.html").read_text(encoding="utf-8")
    assert html.count('class="missing"') == 1  # only the edit that never was


def test_over_the_limit_half_are_the_worst_and_all_stay_in_order():
    rows = [
        {"id": str(n), "method": "m", "error": None, "metrics": {"in_mask_ratio": (n * 37) % 100}}
        for n in range(100)
    ]
    groups, sentence = choose_samples(rows, 20)
    ids = [int(group[0]["id"]) for group in groups]
    assert ids == sorted(ids)
    assert len(set(ids)) == 20
    worst = sorted(range(100), key=lambda n: -((n * 37) % 100))[:10]
    assert set(worst) <= set(ids)
    assert "20 of 100" in sentence
    assert choose_samples(rows, 100)[1] == ""
    rows[7] |= {"error": "missing", "metrics": None}
    assert "7" in [group[0]["id"] for group in choose_samples(rows, 2)[0]]
    assert choose_samples(rows, 0)[0] == []


@pytest.mark.parametrize(
    "notes", [{"label": "x"}, [{"label": "x"}], ["x"], [{"codec": {}}], [{"codec": []}]]
)
def test_malformed_notes_are_refused(scores, tmp_path, notes, capsys):
    with pytest.raises(UserError, match="notes"):
        write_report(scores, tmp_path / "report.html", notes=notes)
    (tmp_path / "notes.json").write_text(json.dumps(notes))
    arguments = ["--scores", str(scores), "--out", str(tmp_path / "report.html")]
    assert report.main([*arguments, "--notes", str(tmp_path / "notes.json")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_no_scores_is_one_sentence(tmp_path, capsys):
    assert report.main(["--scores", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 2
    assert "summary.json" in capsys.readouterr().err
    (tmp_path / "summary.json").write_text('{"schema": 99}')
    (tmp_path / "samples.jsonl").write_text("")
    assert report.main(["--scores", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 2
    assert "score the edits again" in capsys.readouterr().err


def test_large_pictures_are_reduced_and_small_ones_exact():
    small = (torch.rand(3, 64, 128) * 255).round() / 255
    picture = decode(data_address(small))
    assert picture.format == "PNG"
    np.testing.assert_array_equal(
        np.asarray(picture), (small * 255).round().byte().permute(1, 2, 0).numpy()
    )
    large = decode(data_address(torch.rand(3, 400, 800)))
    assert (large.format, large.size) == ("JPEG", (MAX_SIDE, MAX_SIDE // 2))


def test_overlay_is_bright_where_the_map_is_and_rims_the_mask():
    region_map, mask = torch.zeros(8, 8), torch.zeros(1, 64, 64)
    region_map[2:4, 2:4] = 1
    mask[:, 32:48, 32:48] = 1
    picture = overlay(torch.full((3, 64, 64), 0.5), region_map, mask)
    assert picture.shape == (3, 224, 224)
    assert picture[:, 84, 84].mean() > picture[:, 200, 200].mean() + 0.3
    assert (picture[:, 112, 112:168] == 1).all()
    assert overlay(torch.rand(3, 1000, 500), region_map, torch.zeros(1, 1000, 500)).shape[1] == 320


def test_heat_rises_in_brightness_and_the_rim_lies_inside():
    colours = heat_colours(torch.linspace(0, 1, 50)[None])
    luma = (colours * torch.tensor([0.3, 0.59, 0.11]).view(3, 1, 1)).sum(0)[0]
    assert (luma.diff() > 0).all()
    mask = torch.zeros(1, 9, 9)
    mask[:, 2:7, 2:7] = 1
    rim = mask_outline(mask)
    assert rim.sum() == 16
    assert (rim <= mask).all()
    assert mask_outline(torch.ones(1, 9, 9)).sum() == 0
