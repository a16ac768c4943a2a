"""Settings of an edit, read back from its PNG or JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, PngImagePlugin

from regionroute.editing.metadata import mask_from_text, mask_to_text
from regionroute.errors import UserError
from regionroute.studio.jobs import SavedSettings, read_settings


def png(path: Path, parameters: str | None) -> Path:
    info = PngImagePlugin.PngInfo()
    if parameters is not None:
        info.add_text("parameters", parameters)
    Image.new("RGB", (4, 4)).save(path, pnginfo=info)
    return path


def test_a_png_and_its_json_hold_the_same(tmp_path: Path) -> None:
    found = {"object": ["a", "b"], "style": ["x", "y"], "seed": 2**62, "crop": [0, 1, 2, 3]}
    file = tmp_path / "out.json"
    file.write_text(json.dumps(found))
    saved = read_settings(png(tmp_path / "out.png", json.dumps(found)))
    assert saved == read_settings(file)
    assert (saved.objects, saved.styles, saved.seed) == (["a", "b"], ["x", "y"], 2**62)


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        (None, "carries no settings"),
        ("Steps: 20, Sampler: Euler", "out.png"),  # another program's
        ("[1]", "not the settings"),
        ('{"object": "cat"}', "style"),
        ('{"object": ["a", "b"], "style": "x"}', "one style for each"),
        ('{"object": "a", "style": "x", "seed": "one"}', "seed"),
    ],
)
def test_other_images_are_refused(tmp_path: Path, parameters: str | None, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        read_settings(png(tmp_path / "out.png", parameters))


def test_only_own_wording_counts_as_a_prompt() -> None:
    def own(prompt: str, **more: Any) -> str:
        return SavedSettings(object="The cat", style="neon", prompt=prompt, **more).own_prompt

    assert own("make the cat in neon style, keep other area unchanged") == ""
    assert own("make the cat in a and b style, keep other area unchanged") == ""
    assert own("turn the cat into a neon image") == "turn the cat into a neon image"


def test_masks_survive_as_text() -> None:
    mask = torch.arange(64).view(8, 8) / 255
    assert torch.equal(mask_from_text(mask_to_text(mask)), mask)


def test_damaged_and_huge_masks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    text = mask_to_text(torch.ones(40, 40))
    for damaged in ("", "%%%", text[: len(text) // 8 * 4], text.replace("A", "B")):
        with pytest.raises(UserError, match="region_masks"):
            mask_from_text(damaged)
    monkeypatch.setenv("REGIONROUTE_MAX_PIXELS", "1000")
    with pytest.raises(UserError, match="region_masks"):
        mask_from_text(text)
