import dataclasses

import torch

from regionroute.data.manifest import StyleSpec, load_manifest
from train.monitor.previews import CELL, choose, draw_sheet

STYLES = [StyleSpec("pixel-art"), StyleSpec("line-art")]


def test_held_out_samples_are_preferred(tiny_manifest):
    manifest = load_manifest(tiny_manifest)
    assert [sample.id for sample in choose(manifest, STYLES, 4)] == ["pair-3"]
    assert [sample.id for sample in choose(manifest, STYLES[:1], 4)] == ["pair-0", "pair-1"]


def test_styles_take_turns_and_pictures_differ(tiny_manifest):
    manifest = load_manifest(tiny_manifest)
    both = [
        dataclasses.replace(
            manifest.samples[index // 2],
            id=f"{index}",
            split="test",
            regions=manifest.samples[index % 2 * 2].regions,
        )
        for index in range(8)
    ]  # four pictures, each in both styles
    chosen = choose(dataclasses.replace(manifest, samples=both), STYLES, 4)
    assert [sample.regions[0].style for sample in chosen] == ["pixel-art", "line-art"] * 2
    assert len({sample.context for sample in chosen}) == 4


def test_nothing_to_show_is_no_error(tiny_manifest):
    assert choose(load_manifest(tiny_manifest), [StyleSpec("crayon")], 4) == []


def test_the_sheet_shows_each_picture_at_its_place():
    colours = [torch.tensor(c).view(3, 1, 1).expand(3, 8, 16) for c in torch.eye(4)[:, :3].tolist()]
    sheet = draw_sheet("step 7", [("first", colours), ("second", colours)])
    assert sheet.shape[0] == 3
    assert sheet.shape[2] > 4 * CELL
    for colour in torch.eye(3):
        shown = sheet.sub(colour[:, None, None]).abs().amax(0).lt(0.01).float().mean()
        assert shown > 2 * CELL * CELL / 2 / (sheet.shape[1] * sheet.shape[2]) * 0.9
