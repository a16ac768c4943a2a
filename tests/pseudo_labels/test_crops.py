"""Crops: what they show, that they belong to the photo's split, that they are kept."""

import dataclasses

import pytest
import torch

from pseudo_labels.crops import SMALLEST, crops
from pseudo_labels.label import label
from pseudo_labels.scenes.draw import render_scene
from pseudo_labels.segment import Segment
from regionroute.data.manifest import load_manifest
from regionroute.errors import UserError
from tests.pseudo_labels.test_label import SETTINGS

FOUR = dataclasses.replace(SETTINGS, size=64, whole=True, crops=4)


@pytest.fixture(scope="module")
def scene():
    drawn = render_scene(100, 96, count=2)
    segments = [Segment(word, drawn.mask(word)) for word in drawn.words()]
    return drawn.image, segments


def test_each_shows_a_part_of_an_object(scene):
    image, segments = scene
    drawn = list(crops(image, segments, 12, 32, "a"))
    assert len(drawn) == 12
    sides = {part.shape[-1] for part, _ in drawn}
    assert len(sides) > 6
    assert min(sides) >= 32
    assert max(sides) <= 96
    for number, (part, found) in enumerate(drawn):
        assert part.shape[-1] == part.shape[-2]
        assert segments[number % 2].word in [segment.word for segment in found]
        for segment in found:
            assert segment.mask.shape[-2:] == part.shape[-2:]
            assert set(segment.mask.unique().tolist()) <= {0.0, 1.0}


def test_they_depend_on_the_name_alone(scene):
    image, segments = scene
    torch.manual_seed(1)
    first = [part for part, _ in crops(image, segments, 3, 32, "a")]
    torch.manual_seed(2)
    assert all(map(torch.equal, first, [p for p, _ in crops(image, segments, 3, 32, "a")]))
    other = [part for part, _ in crops(image, segments, 3, 32, "b")]
    assert [part.shape for part in first] != [part.shape for part in other]


def test_masks_follow_the_pixels(scene):
    """A white object on black is its own mask, wherever it is cut and mirrored."""
    _, segments = scene
    white = segments[0].mask.expand(3, -1, -1)
    for part, found in crops(white, segments[:1], 8, 32, "a"):
        assert torch.equal(part[:1], found[0].mask)


def test_large_photos_are_shrunk_first(scene):
    _, segments = scene
    large = torch.rand(3, 400, 600)
    sides = [part.shape[-1] for part, _ in crops(large, segments, 8, 32, "a")]
    assert max(sides) <= round(32 / SMALLEST)


def test_an_object_that_is_too_small_for_the_photo_is_passed_over(scene):
    """The photo's own pairs refuse it; the other objects have crops all the same."""
    image, segments = scene
    speck = torch.zeros(1, 4000, 4000)
    speck[0, 1, 1] = 1
    drawn = list(crops(image, [Segment("speck", speck), segments[0]], 3, 32, "a"))
    assert [segment.word for _, found in drawn for segment in found] == [segments[0].word] * 3
    assert list(crops(image, [Segment("speck", speck)], 3, 32, "a")) == []


def test_they_are_trained_on_and_never_tested_on(photos, tmp_path, snapshot):
    def made(settings, share=0.5):
        label(
            tmp_path / "out", labels=photos / "labels.jsonl", styles="scenes", only=["pixel-art"],
            settings=settings, test_share=share, workers=1,
        )  # fmt: skip
        return load_manifest(tmp_path / "out")

    manifest = made(FOUR)
    samples = [sample for sample in manifest.samples if "crop" in sample.provenance]
    assert len(samples) > 6
    assert {sample.split for sample in samples} == {"train"}
    assert len({sample.id for sample in manifest.samples}) == len(manifest.samples)
    assert any(sample.whole for sample in samples)
    for sample in samples:
        if not sample.whole:
            outside = (manifest.masks(sample)[0] == 0).expand(3, -1, -1)
            context, target = manifest.context(sample), manifest.target(sample)
            assert torch.equal(context[outside], target[outside])
    before = snapshot(tmp_path / "out")
    made(FOUR)
    assert snapshot(tmp_path / "out") == before
    plain = made(dataclasses.replace(FOUR, crops=0)).samples
    assert [s.id for s in plain] == [s.id for s in manifest.samples if "crop" not in s.provenance]


def test_ready_pairs_have_none(photos, tmp_path):
    styles = tmp_path / "styles.yaml"
    settings = f'{{after: "{photos}"}}'
    styles.write_text(f"styles:\n  mine: {{phrase: mine, stylizer: pairs, settings: {settings}}}\n")
    with pytest.raises(UserError, match="--crops: restyled photos that exist already"):
        label(tmp_path / "out", labels=photos / "labels.jsonl", styles=styles, settings=FOUR)
