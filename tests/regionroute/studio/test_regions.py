"""Regions that people correct: what the editor shows and gives back, and clicks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from regionroute.studio.regions import (
    PAINT,
    PAINT_OPACITY,
    REMOVE,
    clicked_mask,
    combined,
    corrected,
    editor_value,
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


def strokes(*boxes: tuple[slice, slice, tuple[int, int, int]]) -> np.ndarray:
    """A layer of the editor with filled boxes in colours, as handlers get it."""
    layer = np.zeros((200, 300, 4), dtype=np.uint8)
    for rows, columns, colour in boxes:
        layer[rows, columns] = (*colour, round(255 * PAINT_OPACITY))
    return layer


def test_the_editor_shows_the_region_in_the_photo(photo: Path) -> None:
    value = editor_value(photo, disc())
    shown, plain = (
        np.asarray(one["background"]).astype(int) for one in (value, editor_value(photo))
    )
    changed = (shown != plain).any(-1)
    assert np.array_equal(changed, disc().numpy() > 0)
    assert value["layers"] == []  # Gradio would drop it
    assert value["composite"] is None


def test_without_strokes_the_region_stays_as_it_is() -> None:
    soft = disc() * 0.7
    for value in (None, {"layers": []}, {"layers": [strokes()]}):
        found = corrected(soft, value, (200, 300))
        assert found is not None
        assert torch.equal(found, soft)
        assert corrected(None, value, (200, 300)) is None


def test_magenta_adds_and_blue_removes() -> None:
    corner, right = (slice(20), slice(20)), (slice(None), slice(220, None))
    layer = strokes((*corner, PAINT), (*right, REMOVE))
    found = corrected(disc(), {"layers": [layer]}, (200, 300))
    assert found is not None
    wanted = disc()
    wanted[corner], wanted[right] = 1, 0
    assert torch.equal(found, wanted)
    only = corrected(None, {"layers": [layer]}, (200, 300))
    assert only is not None
    assert only.sum() == 400
    everything = strokes((slice(None), slice(None), REMOVE))
    assert corrected(disc(), {"layers": [everything]}, (200, 300)) is None


def test_the_upper_of_two_strokes_counts() -> None:
    mixed = tuple(round(0.69 * a + 0.31 * b) for a, b in zip(REMOVE, PAINT, strict=True))
    layer = strokes((slice(None), slice(150), mixed))  # type: ignore[arg-type]
    found = corrected(torch.ones(200, 300), {"layers": [layer]}, (200, 300))
    assert found is not None
    assert not found[:, :150].any()
    assert found[:, 150:].all()


def test_large_photos_are_corrected_on_a_smaller_copy(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("RGB", (3000, 1000)).save(path)
    half = torch.zeros(1000, 3000)
    half[:, 1500:] = 1
    assert editor_value(path, half)["background"].size == (1024, 341)
    layer = np.zeros((341, 1024, 4), dtype=np.uint8)
    layer[:, :512] = (*REMOVE, 140)
    layer[:, 512:] = (*PAINT, 140)
    found = corrected(None, {"layers": [layer]}, (1000, 3000))
    assert found is not None
    assert (found != half).float().mean() < 0.002


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
