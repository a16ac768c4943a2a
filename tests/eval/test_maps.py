import re
from collections import Counter

import pytest
import torch

from eval import maps, rses
from eval.maps import choose, has_map
from eval.metrics.attention import attention_share
from eval.report.images import CONTOUR_COLOUR, overlay
from regionroute.attention import region_map
from regionroute.data.images import write_image
from regionroute.data.manifest import load_manifest
from regionroute.files import read_json, read_jsonl, write_jsonl


@pytest.fixture
def page(tiny_manifest, edits, tmp_path, capsys):
    """Runs the command on the tiny manifest: (exit code, the page's text, stdout, stderr)."""

    def run(*extra, methods=("good",), split="all"):
        arguments = ["--manifest", str(tiny_manifest), "--split", split]
        for name in methods:
            arguments += ["--edits", f"{name}={edits[name]}"]
        out = tmp_path / "new folder" / "maps.html"
        code = maps.main([*arguments, "--out", str(out), *extra])
        said = capsys.readouterr()
        return code, out.read_text(encoding="utf-8") if out.exists() else "", said.out, said.err

    return run


@pytest.fixture
def two(edits, tiny_manifest):
    """The half-way edits get maps that are bright on the left half of the image."""
    for sample in load_manifest(tiny_manifest).samples:
        bright = torch.zeros(1, 64, 64)
        bright[..., :32] = 0.8
        write_image(edits["half"] / f"{sample.id}.map.png", bright)
    return ("half", "good")


def test_one_file_with_pictures_maps_and_numbers(page, two):
    code, html, said, _ = page(methods=two)
    assert code == 0
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]+"', html)
    assert "@import" not in html
    assert "url(" not in html
    # Four samples: image, outline, and for both methods edit and map.
    assert html.count('src="data:image/') == 4 * 6
    assert 'class="missing"' not in html
    assert "make the square in pixel-art style" in html
    assert "good: attention IoU 1.000, " in said
    assert "<b>good</b> minus <b>half</b>" in html
    assert "clearly better" in html


def test_the_means_are_those_of_the_score(page, two, tiny_manifest, edits, tmp_path, capsys):
    samples = read_jsonl(tiny_manifest / "manifest.jsonl")
    samples[0]["flags"] = samples[2]["flags"] = ["small"]
    write_jsonl(tiny_manifest / "manifest.jsonl", samples)
    _, html, _, _ = page("--count", "1", methods=two)  # images of one, means of all
    arguments = ["--manifest", str(tiny_manifest), "--split", "all", "--out", str(tmp_path / "s")]
    methods = [part for name in two for part in ("--edits", f"{name}={edits[name]}")]
    assert rses.main([*arguments, *methods]) == 0
    summary = read_json(tmp_path / "s" / "summary.json")
    for part in ("all", "flag:small", "style:line-art"):
        label = part.rpartition(":")[2]
        row = re.search(rf'<th scope="row">{label}<.*?</tr>', html).group()
        cells = re.findall(r"<span>([^<]+)</span>", row)
        values = [
            summary["methods"][method]["slices"][part][metric]["mean"]
            for metric in ("attention_iou", "attention_share")
            for method in two
        ]
        assert cells == [f"{v:.3f}" for v in values[:2]] + [f"{100 * v:.1f} %" for v in values[2:]]
    assert html.count('<article class="sample">') == 1


def test_share_undoes_the_map():
    torch.manual_seed(0)
    attention = torch.rand(5, 1, 8, 8) ** 4
    mask = torch.zeros(5, 1, 64, 64)
    mask[:, :, 10:30, 20:50] = 1
    part = torch.nn.functional.adaptive_avg_pool2d(mask, (8, 8))
    expected = (attention * part).sum((1, 2, 3)) / attention.sum((1, 2, 3))
    stored = (region_map(attention) * 255).round() / 256  # as a file holds it
    torch.testing.assert_close(attention_share(stored, mask), expected, atol=0.01, rtol=0)


def test_share_of_even_attention_is_the_objects_part_and_of_one_cell_all():
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 8:16, 8:24] = 1
    even = torch.full((1, 1, 8, 8), 128 / 256)
    torch.testing.assert_close(attention_share(even, mask), mask.mean((1, 2, 3)))
    spike = torch.zeros(1, 1, 8, 8)
    spike[..., 1, 2] = 255 / 256
    assert attention_share(spike, mask).item() == 1
    assert attention_share(spike, torch.zeros_like(mask)).isnan().all()
    assert attention_share(torch.zeros(1, 1, 8, 8), mask).isnan().all()
    with pytest.raises(ValueError, match="does not fit"):
        attention_share(spike[0], mask)


def rows_of(count, methods=("a", "b")):
    """Rows of scenes in four styles, every third touching, every fifth small."""
    rows = []
    for number in range(count):
        scene, style = divmod(number, 4)
        flags = ["touching"] * (scene % 3 == 0) + ["small"] * (scene % 5 == 0)
        for method in ("floor", *methods, "ceiling"):
            rows.append(
                {
                    "id": f"{scene}-{style}",
                    "method": method,
                    "styles": [f"style-{style}"],
                    "flags": flags,
                    "files": {"source": f"{scene}.png"},
                    "error": None,
                    "metrics": {"attention_iou": 0.5},
                }
            )
    return rows


def test_the_choice_is_spread_seeded_and_in_order():
    rows = rows_of(120)
    groups = choose(rows, 12, 0)
    assert [[row["method"] for row in group] for group in groups] == [["a", "b"]] * 12
    first = [group[0] for group in groups]
    assert set(Counter(row["styles"][0] for row in first).values()) == {3}
    assert len({row["files"]["source"] for row in first}) == 12
    flags = Counter(flag for row in first for flag in row["flags"] or [""])
    assert min(flags[flag] for flag in ("touching", "small", "")) >= 3
    order = [row["id"] for row in rows]
    assert [row["id"] for row in first] == sorted((r["id"] for r in first), key=order.index)
    assert choose(rows, 12, 0) == groups
    assert choose(rows, 12, 1) != groups
    assert len(choose(rows, 500, 0)) == 120


def test_samples_with_all_maps_come_first_and_without_any_never():
    rows = rows_of(8)
    for row in rows:
        if row["method"] == "b" and row["id"] != "1-2":
            row["metrics"] = {"attention_iou": None}
        if row["id"].startswith("0"):
            row |= {"error": "gone"}
    assert [group[0]["id"] for group in choose(rows, 1, 0)] == ["1-2"]
    assert all(any(map(has_map, group)) for group in choose(rows, 8, 0))
    assert len(choose(rows, 8, 0)) == 4


def test_what_is_missing_is_said_in_its_place(page, two, edits):
    (edits["good"] / "pair-0.png").unlink()
    (edits["good"] / "pair-1.map.png").unlink()
    (edits["good"] / "pair-2.map.png").write_bytes(b"broken")
    code, html, said, problems = page(methods=two)
    assert code == 0
    assert html.count('class="missing"') == 3
    assert "good: attention IoU 1.000" in said
    assert "(maps: 1)" in said
    assert re.search(r"all</th><td>4</td>.*<small>maps: 1</small>", html)
    assert "pair-0.png: no such image" in problems
    assert "pair-2.map.png" in problems


def test_texts_are_escaped(page, tiny_manifest):
    samples = read_jsonl(tiny_manifest / "manifest.jsonl")
    for sample in samples:
        sample["flags"] = ["<script>alert(1)</script>"]
    write_jsonl(tiny_manifest / "manifest.jsonl", samples)
    _, html, _, _ = page("--title", "<b>title</b>")
    assert "<script>alert" not in html
    assert "&lt;b&gt;title&lt;/b&gt;" in html


def test_the_contour_goes_around_the_boundary():
    values, mask = torch.zeros(8, 8), torch.zeros(1, 64, 64)
    values[2:4, 2:4] = 0.95
    picture = overlay(torch.full((3, 64, 64), 0.5), values, mask, contour=True)
    lit = (picture == CONTOUR_COLOUR[:, None, None]).all(0)
    rows, columns = lit.nonzero().T
    # The two cells cover pixels 56 to 112; bilinear, the level .5 lies a pixel or so inside.
    for places in (rows, columns):
        assert 54 <= places.min() <= 59
        assert 108 <= places.max() <= 113
    assert not lit[70:98, 70:98].any()
    flat = overlay(torch.rand(3, 64, 64), torch.full((8, 8), 0.5), mask, contour=True)
    assert not (flat == CONTOUR_COLOUR[:, None, None]).all(0).any()  # nowhere above its average
