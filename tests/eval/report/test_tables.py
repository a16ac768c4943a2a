import csv
import io

import pytest

from eval import rses
from eval.metrics import CATALOGUE
from eval.report.tables import format_value, latex


@pytest.fixture
def scores(tiny_manifest, edits, tmp_path):
    """Scores of two methods, one of whose edits is missing; one has a hard name."""
    (edits["half"] / "pair-3.png").unlink()
    arguments = ["--manifest", str(tiny_manifest), "--split", "all", "--out", str(tmp_path / "s")]
    arguments += ["--edits", f"half_way & 100%={edits['half']}", "--edits", str(edits["good"])]
    assert rses.main(arguments) == 0
    return tmp_path / "s"


def test_csv_has_a_line_a_sample_and_method(scores):
    rows = list(csv.DictReader(io.StringIO((scores / "samples.csv").read_text())))
    assert len(rows) == 4 * 4
    assert [row["method"] for row in rows[:4]] == ["floor", "half_way & 100%", "good", "ceiling"]
    half = {row["id"]: row for row in rows if row["method"].startswith("half")}
    assert float(half["pair-0"]["in_mask_ratio"]) == pytest.approx(0.25, abs=0.01)
    assert half["pair-0"]["attention_iou"] == ""  # no map, no number
    assert half["pair-3"]["mse_bg"] == ""
    assert "no such image" in half["pair-3"]["error"]
    assert float(half["pair-0"]["mask_share"]) == pytest.approx(23 * 23 / 64 / 64)


def test_latex_is_a_table_of_its_own(scores):
    text = (scores / "summary.tex").read_text()
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 1
    assert r"half\_way \& 100\% & " in text
    columns = text.split("{tabular}{l")[1].split("}")[0]
    body = [line for line in text.splitlines() if line.endswith((r"\\", r"\\[2pt]"))]
    assert {line.count(" & ") for line in body} == {len(columns)}
    assert r"25.0 \%" in text
    assert "↓" not in text
    assert "…" not in text


def test_units_are_shown_as_people_read_them():
    assert format_value(CATALOGUE["drift_shift"], 1.234) == "1.23 px"
    assert format_value(CATALOGUE["leak"], 0.1234) == "12.3 %"
    assert format_value(CATALOGUE["ssim"], 0.5) == "0.500"
    assert format_value(CATALOGUE["gram"], None) == "–"


def test_a_metric_without_values_has_no_column():
    estimates = {
        name: {"mean": None, "low": None, "high": None, "n": 0} for name in ("rsm", "leak")
    }
    estimates["leak"] = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 3}
    made = {"metrics": dict.fromkeys(estimates), "methods": {"m": {"slices": {"all": estimates}}}}
    text = latex(made)
    assert "RSM" not in text
    assert r"50.0 \%" in text
    assert r"{\scriptsize 40.0 \%\,--\,60.0 \%}" in text.replace(" \\,--\\, ", "\\,--\\,")
