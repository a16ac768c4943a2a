"""Regions that people correct: what the editor shows and gives back, and clicks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from regionroute.studio.regions import (
    clicked_mask,
    combined,
    editor_value,
    is_empty,
    painted_mask,
)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A red disc on noise, 300 pixels wide."""
    y, x = np.mgrid[:200, :300]
    noise = np.random.default_rng(0).integers(60, 140, (200, 300, 3), dtype=np.uint8)
    noise[np.hypot(y - 100, x - 220) < 50] = (230, 40, 30)
    path = tmp_path / "photo.png"
    Image.fromarray(noise).save(path)
    return path


def disc() -> torch.Tensor:
    y, x = np.mgrid[:200, :300]
    return torch.from_numpy((np.hypot(y - 100, x - 220) < 50).astype(np.float32))


def as_arrays(value: dict) -> dict:  # type: ignore[type-arg]
    """The editor's value as handlers get it."""
    return {"layers": [np.asarray(layer) for layer in value["layers"]]}


def test_a_region_survives_the_editor(photo: Path) -> None:
    value = editor_value(photo, disc())
    assert value["background"].size == (300, 200)
    mask = painted_mask(as_arrays(value), (200, 300))
    assert mask is not None
    assert torch.equal(mask, disc())


def test_an_editor_that_is_not_ready_is_told_from_an_erased_region(photo: Path) -> None:
    assert is_empty(None)
    assert is_empty({"background": None, "layers": [], "composite": None})
    erased = editor_value(photo)
    assert not is_empty(erased)
    assert painted_mask(as_arrays(erased), (200, 300)) is None
    assert erased["composite"] is None  # would be shown below the layer, out of the eraser's reach


def test_large_photos_are_corrected_on_a_smaller_copy(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("RGB", (3000, 1000)).save(path)
    half = torch.zeros(1000, 3000)
    half[:, 1500:] = 1
    value = editor_value(path, half)
    assert value["background"].size == (1024, 341)
    mask = painted_mask(as_arrays(value), (1000, 3000))
    assert mask is not None
    assert (mask != half).float().mean() < 0.002


def test_strokes_add_and_the_eraser_removes(photo: Path) -> None:
    (layer,) = as_arrays(editor_value(photo, disc()))["layers"]
    layer = layer.copy()
    layer[:20, :20] = (255, 89, 26, 140)
    layer[:, 220:, 3] = 0
    mask = painted_mask({"layers": [layer]}, (200, 300))
    assert mask is not None
    wanted = disc()
    wanted[:20, :20], wanted[:, 220:] = 1, 0
    assert torch.equal(mask, wanted)


def test_nothing_painted_is_no_region(photo: Path) -> None:
    assert painted_mask(None, (200, 300)) is None
    assert painted_mask({"layers": []}, (200, 300)) is None
    assert painted_mask(as_arrays(editor_value(photo)), (200, 300)) is None


def test_clicks_replace_add_and_remove() -> None:
    old, new = torch.zeros(2, 2), torch.zeros(2, 2)
    old[0], new[:, 0] = 1, 1
    found = [combined(old, new, how) for how in ("replace", "add", "remove")]
    assert [None if mask is None else mask.tolist() for mask in found] == [
        [[1, 0], [1, 0]], [[1, 1], [1, 0]], [[0, 1], [0, 0]],
    ]  # fmt: skip
    assert combined(None, new, "remove") is None
    assert combined(new, new, "remove") is None


def test_a_clicked_object_is_cut_out_by_colour(photo: Path) -> None:
    pytest.importorskip("cv2", reason="GrabCut needs OpenCV")
    mask, name = clicked_mask(photo, (110, 50), (100, 150), "grabcut", "cpu")  # shown at half size
    assert name == "GrabCut"
    overlap = (mask * disc()).sum() / torch.maximum(mask, disc()).sum()
    assert overlap > 0.9
