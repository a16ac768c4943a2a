"""Collages of labelled photos: exact targets, the right words, nothing of the test split."""

import dataclasses
import json

import pytest
import torch

from pseudo_labels.collage import COLLAGES, make_collages
from pseudo_labels.curate.filters import Limits
from pseudo_labels.job import BuildSettings
from pseudo_labels.label import label
from pseudo_labels.scenes.draw import render_scene
from regionroute.cli.manifest.main import main
from regionroute.config.io import load_config
from regionroute.config.run import RunConfig
from regionroute.data.images import write_image
from regionroute.data.manifest import load_manifest
from regionroute.errors import UserError
from train.data.selection import select

ANY = Limits(0.001, 0.9, min_strength=0.0, min_structure=-1.0)  # scenes are no photos


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set of eight photos in two styles, with wholly restyled ones."""
    photos = tmp_path_factory.mktemp("photos")
    rows = []
    for index in range(8):
        scene = render_scene(200 + index, 96, count=1)
        write_image(photos / f"p{index}.png", scene.image)
        [word] = scene.words()
        write_image(photos / f"p{index}.mask.png", scene.mask(word))
        rows.append({"file": f"p{index}.png", "word": word, "mask": f"p{index}.mask.png"})
    (photos / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path_factory.mktemp("data") / "set"
    label(
        out, labels=photos / "labels.jsonl", styles="scenes", only=["pixel-art", "cyberpunk"],
        settings=BuildSettings(size=96, limits=ANY, whole=True), workers=1,
    )  # fmt: skip
    return out


@pytest.fixture(scope="module")
def made(folder):
    """Six collages."""
    make_collages(folder, 6)
    return load_manifest(folder / COLLAGES)


def objects(manifest):
    return [sample for sample in manifest if not sample.whole]


def test_only_the_object_is_restyled_and_exactly_so(made):
    whole = {sample.context: made.target(sample) for sample in made if sample.whole}
    for sample in objects(made):
        inside = made.masks(sample)[0].expand(3, -1, -1) > 0
        target = made.target(sample)
        assert torch.equal(target[inside], whole[sample.context][inside])
        assert torch.equal(target[~inside], made.context(sample)[~inside])
        assert inside.any()
        assert not inside.all()


def test_every_collage_shows_several_words_once_each_in_one_style(made):
    by_image = {}
    for sample in objects(made):
        by_image.setdefault(sample.context, []).append(sample.regions[0])
    assert len(by_image) > 1
    for regions in by_image.values():
        words = [region.object for region in regions]
        assert len(words) > 1
        assert len(words) == len(set(words))
        assert len({region.style for region in regions}) == 1


def test_prompts_name_the_object_and_the_style(made):
    for sample in objects(made):
        [region] = sample.regions
        assert sample.prompt[slice(*region.object_span)] == region.object
        assert sample.prompt[slice(*region.style_span)] == region.style


def test_photos_set_aside_are_in_none(folder, made):
    test = {s.provenance["photo"] for s in load_manifest(folder) if s.split == "test"}
    assert test
    assert not any(test & set(sample.provenance["photos"]) for sample in made)
    assert {sample.split for sample in made} == {"train"}


def test_made_again_they_are_the_same(folder, made):
    before = (folder / COLLAGES).read_bytes()
    image = next((folder / "collages").iterdir())
    pixels, time = image.read_bytes(), image.stat().st_mtime_ns
    make_collages(folder, 6)
    assert (folder / COLLAGES).read_bytes() == before
    assert (image.read_bytes(), image.stat().st_mtime_ns) == (pixels, time)


def test_training_selects_them_with_the_other_samples(folder, made):
    pattern = f"{folder}/manifest*.jsonl"
    config = load_config(None, [f"data.manifest={pattern}", "data.whole_targets=true"], RunConfig)
    chosen = select(load_manifest(pattern), config).samples
    own = {sample.id for sample in objects(made)}
    assert own < {sample.id for sample in chosen}


def test_without_wholly_restyled_photos_it_says_what_to_do(folder, tmp_path, capsys):
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    kept = [json.dumps(row) for row in rows if "whole" not in row["flags"]]
    (tmp_path / "manifest.jsonl").write_text("\n".join(kept) + "\n")
    assert main(["collage", str(tmp_path)]) != 0
    assert "label with --whole" in capsys.readouterr().err
    assert not (tmp_path / COLLAGES).exists()


def test_photos_of_one_word_make_no_collage(folder, tmp_path):
    samples = [s for s in load_manifest(folder) if s.split == "train"]
    first = next(s for s in samples if not s.whole)
    own = [s for s in samples if s.context == first.context]
    for sub in ("images", "targets", "masks"):
        (tmp_path / sub).symlink_to(folder / sub)
    rows = [json.dumps({"schema": 1, **dataclasses.asdict(sample)}) for sample in own]
    (tmp_path / "manifest.jsonl").write_text("\n".join(rows) + "\n")
    with pytest.raises(UserError, match="one word only"):
        make_collages(tmp_path, 2)
