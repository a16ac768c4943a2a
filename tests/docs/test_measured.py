"""The tables of docs/measured are those of bench/results."""

import importlib.util
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
# Their results follow the weights in the package; building the site draws them anew.
FOLLOW_WEIGHTS = {"photos", "photo-slices", "crowded", "presence", "absent"}


@pytest.fixture(scope="module")
def measured():
    sys.path.insert(0, str(DOCS / "_ext"))
    spec = importlib.util.spec_from_file_location("measured", DOCS / "_ext" / "measured.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(DOCS / "_ext"))


def tables(measured):
    pages = {path: path.read_text(encoding="utf-8") for path in DOCS.glob("measured/*.md")}
    return {
        match[2]: match[0] for text in pages.values() for match in measured.MARKED.finditer(text)
    }


def test_every_table_is_shown_once(measured):
    assert set(tables(measured)) == set(measured.TABLES)


def test_tables_are_as_drawn_from_the_results(measured):
    drawn = {name: measured.redrawn(text) for name, text in tables(measured).items()}
    shown = tables(measured)
    old = [name for name in drawn if name not in FOLLOW_WEIGHTS and drawn[name] != shown[name]]
    assert old == [], "run `make measured`"
    assert all("| ---" in text for text in drawn.values())


def test_numbers_and_intervals(measured):
    assert measured.cell([0.5, 0.42, 0.6], "%") == "50% (42 to 60)"
    assert measured.cell({"difference": -0.1, "low": -0.2, "high": 0.05}, "%.1", signed=True) == (
        "-10.0 (-20.0 to +5.0)"
    )
    # the interval belongs to the difference, not to the mean
    assert measured.cell({"mean": 0.27, "difference": 0.1, "low": 0.0, "high": 0.2}, ".2") == "0.27"
    assert measured.cell(None, ".2") == measured.cell({"mean": None}, ".2") == ""


def test_every_page_names_its_command():
    named = [p.name for p in DOCS.glob("measured/*.md") if "<!-- table" in p.read_text()]
    silent = [
        name for name in named if "python bench/" not in (DOCS / "measured" / name).read_text()
    ]
    assert named
    assert silent == []
