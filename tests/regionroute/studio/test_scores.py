"""The score tab measures what `regionroute score` does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regionroute.errors import UserError
from regionroute.studio.scores import score_edit, shown


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    source = np.full((64, 64, 3), 100, dtype=np.uint8)
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[16:48, 16:48] = 255
    edited, target = source.copy(), source.copy()
    edited[16:48, 16:32] = 200  # half of the object
    target[16:48, 16:48] = 200
    images = {"source": source, "edited": edited, "mask": mask, "target": target}
    for name, array in images.items():
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    return {name: tmp_path / f"{name}.png" for name in images}


def test_half_an_edit(files: dict[str, Path]) -> None:
    found = {name: value for name, value, _ in score_edit(**files)}
    assert found["Coverage ↑"] == "50.0 %"
    assert found["Error left on the object ↓"] == "50.0 %"
    assert found["Background error ↓"] == "0"
    without = {name for name, _, _ in score_edit(files["source"], files["edited"], files["mask"])}
    assert "Coverage ↑" in without
    assert "Error left on the object ↓" not in without


def test_images_of_another_size_are_refused(files: dict[str, Path]) -> None:
    Image.new("RGB", (8, 8)).save(files["edited"])
    with pytest.raises(UserError, match="8x8"):
        score_edit(files["source"], files["edited"], files["mask"])


def test_values_have_units() -> None:
    assert shown(0.125, "share") == "12.5 %"
    assert shown(1.5, "pixels") == "1.50 px"
    assert shown(float("nan"), "value") == "–"
