"""The command: scores are those of the heads named, the choice is kept and used, mistakes told."""

import dataclasses
import json
import shutil

import pytest
import torch

from regionroute.adapters import read_registry
from regionroute.attention import map_scores
from regionroute.cli.calibrate import main
from regionroute.config.sites import MapChoice
from regionroute.data.images import read_image, write_image
from regionroute.data.manifest import load_manifest, write_manifest
from regionroute.diffusion.latents import mask_to_grid
from regionroute.editing.calibrate import draw_examples, every_head
from regionroute.editing.editor import Editor
from regionroute.editing.head_scan import HeadScan
from regionroute.files import read_json
from regionroute.models.loading import load_base


@pytest.fixture
def pictures(tiny_manifest):
    """Four labelled pictures for the experts of the tests, one of another size."""
    manifest = load_manifest(tiny_manifest)
    samples = []
    for sample in manifest.samples:
        word = sample.regions[0].object
        region = dataclasses.replace(sample.regions[0], style="pixel-art")
        prompt = f"make the {word} in pixel-art style"
        samples.append(dataclasses.replace(sample, regions=(region,), prompt=prompt, split="train"))
    write_manifest(tiny_manifest, samples)
    last = samples[3]
    for name in (last.context, last.target, last.regions[0].mask):
        picture = read_image(manifest.path(name))
        write_image(manifest.path(name), picture[:, :32])
    return tiny_manifest


@pytest.fixture
def experts(tiny_experts, tmp_path):
    return shutil.copytree(tiny_experts, tmp_path / "experts")


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_scores_belong_to_the_heads_and_pictures_they_name(tiny_base, experts, pictures):
    editor = Editor(load_base(str(tiny_base)), experts)
    manifest = load_manifest(pictures)
    examples = draw_examples(manifest, "train", {"pixel-art"}, 4, seed=0)
    assert sorted(example.sample.id for example in examples) == [f"pair-{i}" for i in range(4)]
    assert {example.size for example in examples} == {(64, 64), (32, 64)}
    assert every_head(editor)[:3] == [
        "all.target:0@style",
        "all.target:1@style",
        "all.context:0@style",
    ]
    every = MapChoice(layers=every_head(editor), combine="normalised")
    done = []
    scan = HeadScan(editor, manifest, examples, 3, done.append)
    scores, bare = scan.scores(every), scan.scores(every, bare=True)
    assert sum(done) == 8
    assert scores.iou.shape == (3 * 2 * 2 * 2, 4)  # blocks, heads, tokens, words
    place = next(
        n
        for n, p in enumerate(scores.sites)
        if (p.name, p.word) == ("single.0.context:1", "object")
    )
    for number, example in enumerate(examples):
        editor.read_maps(MapChoice(layers=["single.0:1@object"], queries="context"))
        image = manifest.context(example.sample)
        for found, is_bare in ((scores, False), (bare, True)):
            [attention] = editor.site_maps([image], [example.request], bare=is_bare).values()
            mask = mask_to_grid(manifest.masks(example.sample)[0], *attention.shape[-2:])
            iou, share = map_scores(attention[0], mask)
            assert found.iou[place, number] == pytest.approx(iou.item(), abs=0.02)
            assert found.share[place, number] == pytest.approx(share.item(), rel=1e-3)
    row = scan.row("one", MapChoice(layers=["single.0.context:1@object"]))
    torch.testing.assert_close(row.share, scores.share[place], rtol=1e-3, atol=0)
    _, maps, masks = scan.maps(every)
    assert [tuple(m.shape[1:]) == tuple(k.shape) for m, k in zip(maps, masks, strict=True)]


def test_the_choice_is_kept_with_the_experts_and_used(tiny_base, experts, pictures, capsys):
    before = read_json(experts / "experts.json")
    options = ("--experts", experts, "--manifest", pictures, "--base", tiny_base, "--top", 2)
    assert run(*options, "--dry-run") == 0
    assert read_json(experts / "experts.json") == before
    assert not (experts / "calibration.json").exists()
    printed = capsys.readouterr().out
    for text in ("with experts", "base alone", "what was supervised", "a random head", "choice: "):
        assert text in printed

    assert run(*options) == 0
    after = read_json(experts / "experts.json")
    choice = MapChoice(**after["extra"].pop("map"))
    assert after == before
    assert 1 <= len(choice.layers) <= 2
    assert f"choice: {' '.join(choice.layers)}" in printed
    assert (choice.combine, choice.steps) == ("normalised", "first")
    assert choice.provenance["pictures"] == 4
    assert choice.provenance["split"] == "train"
    report = read_json(experts / "calibration.json")
    assert report["map"]["layers"] == choice.layers
    assert len(report["heads"]["with experts"]) == 24
    assert set(report["samples"]["choosing"]).isdisjoint(report["samples"]["reporting"])
    assert report["comparison"][0]["iou"] == choice.provenance["iou"]
    editor = Editor(load_base(str(tiny_base)), experts)
    assert editor.map_choice == choice
    assert read_registry(experts).extra["map"]["layers"] == choice.layers


def test_a_base_alone_is_calibrated_into_a_file_that_edit_reads(tiny_base, pictures, tmp_path):
    from regionroute.cli.edit import main as edit

    out = tmp_path / "choice.json"
    options = ("--zero-shot", "--manifest", pictures, "--base", tiny_base, "--out", out)
    assert run(*options) == 0
    picture, result = load_manifest(pictures).root / "0.context.png", tmp_path / "edit.png"
    common = [str(picture), "--object", "square", "--style", "gouache", "--zero-shot", "--steps=1"]
    common += ["--base", str(tiny_base), "--out", str(result), "--map", str(tmp_path / "map.png")]
    assert edit([*common, "--map-from", str(out)]) == 0
    told = read_json(result.with_suffix(".json"))["map"]
    assert told["layers"] == read_json(out)["map"]["layers"]
    assert told["file"] == "map.png"
    assert edit([*common, "--map-from", "double.0:1 all@object"]) == 0
    assert read_json(result.with_suffix(".json"))["map"]["layers"] == ["double.0:1", "all@object"]


def test_wrong_map_places_are_one_sentence(tiny_base, pictures, tmp_path, capsys):
    from regionroute.cli.edit import main as edit

    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps({"map": {"layers": ["x y"]}}))
    empty = tmp_path / "empty.json"
    empty.write_text("{}")
    picture = load_manifest(pictures).root / "0.context.png"
    for given, sentence in (
        ("double.0:9", '--map-from: "double.0:9": the heads are 0 to 1'),
        ("triple.0", '--map-from: the model has no block "triple.0", the nearest is "single.0"'),
        ("double 0", "not of the form"),
        (tmp_path / "absent.json", "absent.json"),
        (empty, 'no "map" in it'),
        (broken, "broken.json: map.layers"),
    ):
        arguments = [picture, "--object", "square", "--style", "x", "--zero-shot"]
        arguments += ["--base", tiny_base, "--out", tmp_path / "out.png", "--map-from", given]
        assert edit([str(argument) for argument in arguments]) == 2
        told = capsys.readouterr().err
        assert told.startswith("error: ")
        assert sentence in told
        assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--split", "test"], "nothing may be chosen on them"),
        (["--split", "val"], "has 0 images with masks"),
        (["--count", "3"], "--count 3: must be at least 4"),
        (["--top", "0"], "--top 0"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--seed", "-1"], "--seed -1"),
        (["--zero-shot"], "either --experts DIR or --zero-shot"),
        (["--out", "x.json"], "--out goes with --zero-shot"),
        (["--device", "cuda:77"], "device cuda:77"),
        (["--experts", "nowhere"], "no experts.json here"),
        (["--manifest", "nowhere"], "no such manifest"),
        (["--many"], "unrecognized arguments: --many"),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    tiny_base, experts, pictures, capsys, options, sentence, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    given = ["--experts", experts, "--manifest", pictures, "--base", tiny_base, *options]
    assert run(*given) == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert run("--zero-shot", "--manifest", pictures) == 2
    assert "--zero-shot needs --out" in capsys.readouterr().err
    rows = load_manifest(pictures).root / "manifest.jsonl"
    before = rows.read_bytes()
    assert run("--zero-shot", "--manifest", pictures, "--base", tiny_base, "--out", rows) == 2
    assert "give a name that ends in .json" in capsys.readouterr().err
    assert rows.read_bytes() == before


def test_an_empty_mask_names_its_file(tiny_base, experts, pictures, capsys):
    mask = load_manifest(pictures).root / "1.mask.png"
    write_image(mask, torch.zeros(1, 64, 64))
    assert run("--experts", experts, "--manifest", pictures, "--base", tiny_base) == 2
    assert f"{mask}: the mask is empty" in capsys.readouterr().err
    assert not (experts / "calibration.json").exists()


def test_pictures_are_drawn_once_each_with_the_styles_taking_turns(tiny_manifest):
    manifest = load_manifest(tiny_manifest)
    samples = []
    for number in range(12):
        first = manifest.samples[number % 3]
        for style in ("a", "b", "c"):
            region = dataclasses.replace(first.regions[0], style=style)
            samples.append(
                dataclasses.replace(
                    first, id=f"{number}-{style}", context=f"{number}.png", regions=(region,)
                )
            )
        shutil.copy(manifest.path(first.context), manifest.root / f"{number}.png")
    write_manifest(tiny_manifest, samples)
    found = draw_examples(load_manifest(tiny_manifest), "train", {"a", "b"}, 10, seed=1)
    assert len({example.sample.context for example in found}) == len(found) == 10
    styles = [example.sample.regions[0].style for example in found]
    assert styles.count("a") == styles.count("b") == 5
    again = draw_examples(load_manifest(tiny_manifest), "train", {"a", "b"}, 10, seed=1)
    assert [example.sample.id for example in again] == [example.sample.id for example in found]
    assert draw_examples(load_manifest(tiny_manifest), "train", None, 99, seed=1).__len__() == 12
