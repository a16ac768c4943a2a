"""Examples in docstrings run, and print what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("regionroute", "pseudo_labels", "train", "eval")
FILES = [
    path.relative_to(REPOSITORY)
    for package in PACKAGES
    for path in sorted((REPOSITORY / package).rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


def test_there_are_examples():
    assert len(FILES) >= 3


@pytest.mark.parametrize("file", FILES, ids=str)
def test_examples_of_a_module(file):
    module = importlib.import_module(".".join(file.with_suffix("").parts))
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed
