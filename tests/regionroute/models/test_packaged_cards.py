"""The model cards in the package are those that the code writes now, and state a licence."""

from pathlib import Path

import pytest
import yaml

from regionroute.adapters import read_registry
from regionroute.adapters.files.card import card
from regionroute.models.embedded import NAMES, nano_folder

BASES = [nano_folder(name) for name in NAMES]
EXPERTS = sorted(file.parent for base in BASES for file in base.glob("*/experts.json"))


def header(folder: Path) -> dict[str, object]:
    text = (folder / "README.md").read_text(encoding="utf-8")
    found: dict[str, object] = yaml.safe_load(text.split("---\n")[1])
    return found


@pytest.mark.parametrize("folder", EXPERTS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_the_card_of_experts(folder: Path) -> None:
    """After a training: regionroute experts card FOLDER --license NAME."""
    assert card(read_registry(folder)) == (folder / "README.md").read_text(encoding="utf-8")
    assert header(folder)["license"] == header(folder.parent)["license"] == "apache-2.0"


def test_every_base_has_experts_and_a_card() -> None:
    assert {folder.parent for folder in EXPERTS} == set(BASES)
