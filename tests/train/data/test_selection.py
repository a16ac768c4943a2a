"""Which samples a run trains on: split, styles, and samples of several styles."""

import dataclasses
from pathlib import Path

import pytest
import torch

from eval import rses
from regionroute.cli import main as cli
from regionroute.config.run import load_config
from regionroute.data.manifest import load_manifest, mask_box, write_manifest
from regionroute.data.prompts import build_prompt
from regionroute.errors import UserError
from regionroute.files import read_json
from train.data.selection import one_style_each, select, target_of
from train.monitor.preview_pairs import write_pairs


@pytest.fixture
def manifest(tiny_manifest):
    return load_manifest(tiny_manifest)


def config_for(manifest, *overrides):
    return load_config(None, [f"data.manifest={manifest.root}", *overrides])


def rewrite(manifest, change):
    """The manifest with some samples changed."""
    write_manifest(manifest.root, [change(sample) for sample in manifest.samples])
    return load_manifest(manifest.root)


def test_selection_keeps_the_split_and_the_wanted_styles(manifest):
    chosen = select(manifest, config_for(manifest))
    assert [sample.id for sample in chosen.samples] == ["pair-0", "pair-1", "pair-2"]
    assert [style.name for style in chosen.styles] == ["line-art", "pixel-art"]
    chosen = select(manifest, config_for(manifest, "experts.styles=[pixel-art]"))
    assert [sample.id for sample in chosen.samples] == ["pair-0", "pair-1"]
    assert chosen.skipped == {"style not trained": 1}


def whole_sample(sample, target):
    """The sample of the whole photo that `label --whole` makes beside it."""
    prompt = f"make the image in {sample.regions[0].style} style"
    region = dataclasses.replace(sample.regions[0], object="image")
    return dataclasses.replace(
        sample, id=f"{sample.id}-whole", target=target, prompt=prompt, regions=(region,),
        flags=("whole",),
    )  # fmt: skip


def test_whole_targets_are_those_of_the_same_photo_and_style(manifest):
    asked = config_for(manifest, "data.whole_targets=true")
    with pytest.raises(UserError, match="lacks the wholly restyled photo of sample 'pair-0'"):
        select(manifest, asked)
    both = [
        one
        for sample in manifest.samples
        for one in (sample, whole_sample(sample, sample.target.replace("target", "mask")))
    ]
    write_manifest(manifest.root, both)
    chosen = select(load_manifest(manifest.root), asked)
    assert [sample.id for sample in chosen.samples] == ["pair-0", "pair-1", "pair-2"]
    for sample, before in zip(chosen.samples, manifest.samples, strict=False):
        assert sample.target == before.target.replace("target", "mask")
        assert (sample.prompt, sample.regions) == (before.prompt, before.regions)
    assert sum(chosen.skipped.values()) == 3
    write_manifest(manifest.root, both[1::2])
    with pytest.raises(UserError, match="samples of whole images only"):
        select(load_manifest(manifest.root), asked)


def test_a_part_of_a_sample_gets_its_own_styles_whole_photo(manifest):
    changed = two_styles(manifest)
    first = changed.samples[0]
    wholes = [
        dataclasses.replace(
            whole_sample(dataclasses.replace(first, regions=(region,)), f"{n}.mask.png"),
            id=f"whole-{n}",
        )
        for n, region in enumerate(first.regions)
    ]
    write_manifest(changed.root, [first, *wholes])
    read = load_manifest(changed.root)
    chosen = select(read, config_for(changed, "data.whole_targets=true"))
    assert [sample.target for sample in chosen.samples] == ["0.mask.png", "1.mask.png"]
    assert torch.equal(target_of(read, chosen.samples[1]), read.target(wholes[1]))


def two_styles(manifest, **changes):
    """The manifest with both objects of the first sample restyled, each in its own style."""
    first, third = manifest.samples[0], manifest.samples[2]
    prompt = build_prompt([("square", "pixel-art"), ("circle", "line-art")])
    region = dataclasses.replace(third.regions[0], object="circle", mask="1.mask.png")
    sample = dataclasses.replace(
        first, prompt=prompt.text, regions=(first.regions[0], region), **changes
    )
    write_manifest(manifest.root, [sample, *manifest.samples[1:]])
    return load_manifest(manifest.root)


def test_a_sample_of_several_styles_becomes_one_of_each(manifest):
    changed = two_styles(manifest)
    chosen = select(changed, config_for(changed))
    ids = ["pair-0:pixel-art", "pair-0:line-art", "pair-1", "pair-2"]
    assert [sample.id for sample in chosen.samples] == ids
    assert chosen.skipped == {}
    parts = {sample.id: sample for sample in chosen.samples}
    part = parts["pair-0:line-art"]
    assert part.prompt == "make the circle in line-art style, keep other area unchanged"
    [region] = part.regions
    assert part.prompt[slice(*region.style_span)] == "line-art"
    assert part.prompt[slice(*region.object_span)] == "circle"


def test_parts_are_written_as_the_model_sees_them(manifest, tmp_path):
    changed = two_styles(manifest)
    parts = one_style_each(changed.samples[0], changed.root)
    write_pairs(tmp_path, changed, parts, (16, 32))

    written = load_manifest(tmp_path)
    assert [sample.id for sample in written.samples] == ["pair-0-pixel-art", "pair-0-line-art"]
    for sample, part in zip(written.samples, parts, strict=True):
        assert (sample.prompt, sample.split) == (part.prompt, part.split)
        assert [region.object for region in sample.regions] == [part.regions[0].object]
        context, target = written.context(sample), written.target(sample)
        assert context.shape == (3, 16, 32)
        mask = written.masks(sample)[0]
        assert sample.regions[0].box == mask_box(mask)
        assert (target - context).abs().mul(mask).max() > 0
        # What resizing spreads aside, what is of the other style stays as it was.
        border = torch.nn.functional.max_pool2d(mask, 5, stride=1, padding=2)
        assert (target - context).abs().mul(1 - border).max() < 0.02


def test_a_part_has_the_source_where_another_style_was(manifest):
    changed = two_styles(manifest)
    chosen = select(changed, config_for(changed))
    for sample in chosen.samples:
        context, target = changed.context(sample), changed.target(sample)
        inside = changed.masks(sample).amax(0) > 0.5
        if ":" in sample.id:
            expected = torch.where(inside, target, context)
            assert not torch.equal(expected, target) or sample.id.endswith("pixel-art")
        else:
            expected = target
        assert torch.equal(target_of(changed, sample), expected)


def test_objects_of_one_style_stay_one_sample(manifest):
    first = manifest.samples[0]
    other = dataclasses.replace(first.regions[0], mask="1.mask.png")
    sample = dataclasses.replace(first, regions=(*first.regions, other))
    assert one_style_each(sample, manifest.root) == [sample]
    assert one_style_each(dataclasses.replace(first, regions=()), manifest.root) == []


def test_a_phrase_that_is_not_there_names_the_sample(manifest):
    changed = two_styles(manifest)
    broken = dataclasses.replace(changed.samples[0], prompt="make the square in pixel-art style")
    with pytest.raises(UserError, match=r"here: sample 'pair-0': .*circle"):
        one_style_each(broken, Path("here"))


def test_samples_without_a_region_are_left_out(manifest):
    bare = dataclasses.replace(manifest.samples[1], regions=())
    write_manifest(manifest.root, [manifest.samples[0], bare, *manifest.samples[2:]])
    changed = load_manifest(manifest.root)
    assert select(changed, config_for(changed)).skipped == {"no region": 1}


def test_both_styles_of_a_sample_are_trained_shown_and_edited(runs, manifest, tiny_base):
    two_styles(manifest, split="train")
    assert runs("run", "train.preview_every=3", "train.previews=4") == 0
    [shown] = load_manifest(runs.output("run") / "previews").samples
    assert (runs.output("run") / "previews" / "step-000003" / f"{shown.id}.png").is_file()
    experts = runs.output("run") / "experts"
    out = runs.output("edits")
    arguments = ["--base", str(tiny_base), "--experts", str(experts), "--steps", "1"]
    manifest_arguments = ["--manifest", str(manifest.root), "--split", "train"]
    assert (
        cli.main(
            ["edit", *manifest_arguments, "--out-dir", str(out), "--mode", "routed", *arguments]
        )
        == 0
    )
    sidecar = read_json(out / "pair-0.json")
    assert sidecar["style"] == ["pixel-art", "line-art"]
    assert (
        rses.main([*manifest_arguments, "--edits", str(out), "--out", str(runs.output("scores"))])
        == 0
    )


def test_a_phrase_unlike_the_name_is_remembered(manifest):
    def change(sample):
        region = dataclasses.replace(sample.regions[0], style="s1", style_span=(16, 25))
        return dataclasses.replace(sample, regions=(region,), prompt="make the dog in pixel-art it")

    changed = rewrite(manifest, change)
    (style,) = select(changed, config_for(changed)).styles
    assert (style.name, style.phrase) == ("s1", "pixel-art")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("experts.styles=[pixel-arts]", "no style 'pixel-arts', the nearest is 'pixel-art'"),
        ("experts.styles=[pixel-art, pixel-art]", "names a style twice"),
        ("data.split=tests", r"split 'tests' .* the manifest has train \(3\), val \(1\)"),
    ],
)
def test_an_impossible_selection_is_refused(manifest, override, sentence):
    with pytest.raises(UserError, match=sentence):
        select(manifest, config_for(manifest, override))
