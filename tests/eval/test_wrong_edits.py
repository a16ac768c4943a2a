import importlib.util
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def bench(monkeypatch):
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(str(BENCH))
    spec = importlib.util.spec_from_file_location("wrong_edits", BENCH / "eval_wrong_edits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_four_wrong_edits_of_photos_are_ordered_rightly(bench, assets, tmp_path, monkeypatch):
    out, result = tmp_path / "out", tmp_path / "result.json"
    arguments = ["--assets", str(assets), "--out", str(out), "--result", str(result)]
    monkeypatch.setattr(sys, "argv", ["eval_wrong_edits.py", *arguments])
    assert bench.main() == 0
    assert (out / "report.html").exists()


def test_an_order_that_does_not_hold_is_found(bench):
    def estimate(low, high):
        return {"slices": {"all": {"leak": {"low": low, "high": high}}}}

    made = {
        "metrics": {"leak": {"better": "lower"}},
        "methods": {"a": estimate(0, 0.1), "b": estimate(0.2, 0.3), "c": estimate(0.25, 0.4)},
    }
    assert bench.check_order(made, "leak", [["a"], ["b", "c"]])["holds"]
    assert not bench.check_order(made, "leak", [["a"], ["b"], ["c"]])["holds"]
    assert not bench.check_order(made, "leak", [["b"], ["a"]])["holds"]
    made["metrics"]["leak"]["better"] = "higher"
    assert bench.check_order(made, "leak", [["c", "b"], ["a"]])["holds"]


def test_a_paired_order_that_does_not_hold_is_found(bench):
    def pair(a, b, low, high):
        return {"a": a, "b": b, "slices": {"all": {"gram": {"low": low, "high": high}}}}

    made = {
        "metrics": {"gram": {"better": "lower"}},
        "pairs": [pair("b", "a", 0.1, 0.2), pair("c", "b", -0.1, 0.2)],
    }
    assert bench.check_pairs(made, "gram", ["a", "b"])["holds"]
    assert not bench.check_pairs(made, "gram", ["b", "a"])["holds"]
    assert not bench.check_pairs(made, "gram", ["a", "b", "c"])["holds"]
