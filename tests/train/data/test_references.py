"""Training by example pictures: other things in the same style, prompts without its word, files."""

import json
from dataclasses import replace

import pytest
import torch

from regionroute.adapters.style_encoder import EncoderSettings, StyleEncoder, new_tower
from regionroute.adapters.style_encoder import save_style_encoder as save
from regionroute.data.images import read_image, write_image
from regionroute.data.manifest import load_manifest, write_manifest
from regionroute.editing.editor import Editor
from regionroute.editing.request import EditOptions, EditRequest
from regionroute.errors import UserError
from regionroute.models.loading import load_base
from train.data.cache import Cache
from train.data.references import References, without_style_words
from train.style_encoder.images import read_style_pictures

STYLES = ("line-art", "pixel-art")


@pytest.fixture
def encoder(tmp_path):
    torch.manual_seed(0)
    settings = EncoderSettings(levels=(-1, -2), tokens=2, width=4)
    save(tmp_path / "encoder", StyleEncoder(new_tower(16, 8, 16, 2, 2), settings))
    return tmp_path / "encoder"


@pytest.fixture
def pictures(tmp_path):
    generator = torch.Generator().manual_seed(2)
    for style in STYLES:
        for content in range(4):
            image = torch.rand(3, 20, 24, generator=generator)
            write_image(tmp_path / "styles" / style / f"{content}.png", image)
    return tmp_path / "styles"


@pytest.fixture
def references(encoder, pictures, tmp_path):
    found = References(encoder, read_style_pictures(pictures), STYLES, Cache(tmp_path / "cache"))
    found.cache.fill(found.entries())
    return found


@pytest.fixture
def by_example(runs, encoder, pictures):
    """Runs of the command with experts chosen by example."""
    common = [
        "experts.router=similarity", "experts.num_experts=3", f"experts.style_encoder={encoder}",
        f"experts.style_pictures={pictures}", "routing.branch=expert", "routing.prompt=object",
    ]  # fmt: skip
    return lambda name, *more: runs(name, *common, *more)


def test_an_example_shows_something_else_in_the_same_style(references):
    rows = references.embeddings
    drawn = set()
    for seed in range(40):
        row = references.draw(1, "2", torch.Generator().manual_seed(seed))
        [position] = (rows == row).all(1).nonzero().flatten().tolist()
        picture = references.pictures[position]
        assert picture.style == "pixel-art"
        assert picture.content != "2"
        drawn.add(picture.content)
    assert drawn == {"0", "1", "3"}


@pytest.fixture
def labelled(tiny_manifest):
    """Four pairs of one style with the references that `label` writes: for all but the last."""
    samples = []
    for sample, chosen in zip(
        load_manifest(tiny_manifest).samples, ("pair-2", "pair-3", "pair-0", None), strict=True
    ):
        region = replace(sample.regions[0], style="pixel-art")
        prompt = sample.prompt.replace("line-art", "pixel-art")
        facts = sample.provenance | {"reference": chosen}
        samples.append(
            replace(sample, regions=(region,), prompt=prompt, split="train", provenance=facts)
        )
    write_manifest(tiny_manifest, samples)
    return tiny_manifest


def test_the_example_is_the_one_that_label_chose(encoder, labelled, tmp_path):
    pictures = read_style_pictures(labelled)
    found = References(encoder, pictures, ["pixel-art"], Cache(tmp_path / "cache"))
    found.cache.fill(found.entries())

    def drawn(sample):
        rows = [
            found.draw(0, sample[-1], torch.Generator().manual_seed(seed), sample)
            for seed in range(30)
        ]
        return {pictures[(found.embeddings == row).all(1).nonzero().item()].sample for row in rows}

    assert drawn("pair-0") == {"pair-2"}
    assert drawn("pair-1") == {"pair-3"}
    assert len(drawn("pair-3")) > 1  # none was chosen: any of the style
    others = [replace(picture, reference=None) for picture in pictures]
    unchosen = References(encoder, others, ["pixel-art"], found.cache)
    assert found.identity() != unchosen.identity()


def test_training_uses_the_references_of_the_manifest(runs, encoder, labelled, monkeypatch, capsys):
    given = []
    draw = References.draw

    def watched(self, style, content, generator, sample=None):
        row = draw(self, style, content, generator, sample)
        given.append((sample, (self.embeddings == row).all(1).nonzero().flatten().tolist()))
        return row

    monkeypatch.setattr(References, "draw", watched)
    changes = ["experts.router=similarity", "experts.num_experts=3", "routing.prompt=object"]
    assert runs("run", *changes, f"experts.style_encoder={encoder}", "train.steps=2") == 0
    chosen = {"pair-0": [2], "pair-1": [3], "pair-2": [0]}
    assert {sample for sample, _ in given} == {*chosen, "pair-3"}
    assert all(rows == chosen.get(sample, rows) for sample, rows in given)
    assert "3 pairs have the example image" in "".join(capsys.readouterr())


def test_images_of_the_users_own_come_before_the_references(references):
    assert references.chosen == {}


def test_a_style_by_name_is_the_mean_of_its_examples(references):
    means = references.means()
    assert means.names == list(STYLES)
    torch.testing.assert_close(means.by_name["line-art"], references.embeddings[:4].mean(0))


def test_prompts_lose_the_words_of_their_styles(tiny_manifest):
    sample = load_manifest(tiny_manifest).samples[0]
    [region] = sample.regions
    bare = without_style_words(sample)
    assert bare.prompt == sample.prompt.replace(region.style, "reference")
    assert bare.prompt[slice(*bare.regions[0].style_span)] == "reference"
    assert bare.prompt[slice(*bare.regions[0].object_span)] == region.object
    twice = replace(sample, prompt=f"{sample.prompt} in {region.style} style")
    with pytest.raises(UserError):
        without_style_words(twice)


def test_what_is_trained_edits_by_name_and_by_example(
    by_example, runs, tiny_base, pictures, tiny_manifest
):
    assert by_example("run", "train.preview_every=3") == 0
    experts = runs.output("run") / "experts"
    registry = json.loads((experts / "experts.json").read_text())
    assert [entry["style"] for entry in registry["experts"]] == [f"expert-0{i}" for i in range(3)]
    assert registry["extra"]["styles"] == list(STYLES)
    assert list((runs.output("run") / "previews").iterdir())

    editor = Editor(load_base(str(tiny_base)), experts)
    image = torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(0))
    shown = read_image(pictures / "pixel-art" / "1.png")
    results = {
        "named": editor.edit(image, EditRequest("dog", "Pixel-Art"), EditOptions(steps=1)),
        "shown": editor.edit(
            image, EditRequest("dog", "", style_images=(shown,)), EditOptions(steps=1)
        ),
        "blend": editor.edit(
            image, EditRequest("dog", "0.3 pixel-art + 0.7 line-art"), EditOptions(steps=1)
        ),
    }
    for result in results.values():
        assert result.prompt == "make the dog in reference style, keep other area unchanged"
    assert results["named"].settings["style"] == "pixel-art"
    [[nearest, cosine]] = results["shown"].settings["nearest_trained_style"]
    assert nearest in STYLES
    assert 0 < cosine <= 1
    pair = editor.edit(
        image,
        EditRequest("dog", "", style_images=(shown, shown.flip(0)), also=(("cup", ""),)),
        EditOptions(steps=1),
    )
    assert len(pair.settings["nearest_trained_style"]) == 2


def test_runs_repeat_and_resume_bit_for_bit(by_example, runs):
    assert by_example("whole") == 0
    assert by_example("parts", "train.steps=2") == 0
    assert by_example("parts") == 0
    assert runs.difference("whole", "parts") == 0
    row = runs.losses("whole")[-1]
    assert {"entropy", "overlap_within"} <= row.keys()
    assert "balance" not in row


def test_load_balance_is_part_of_the_loss(by_example, runs):
    assert by_example("run", "experts.load_balance=0.5", "train.steps=1") == 0
    [row] = runs.losses("run")
    parts = row["flow"] + 0.1 * row["focus"] + 0.2 * row["cover"] + 0.5 * row["balance"]
    assert row["total"] == pytest.approx(parts, abs=1e-5)
    assert row["balance"] > 0


def test_the_manifests_own_objects_serve_as_examples(runs, encoder, capsys):
    # Each style of this manifest shows one thing only.
    status = runs("run", "experts.router=similarity", f"experts.style_encoder={encoder}")
    assert status == 2
    assert "has images of one content only" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["experts.style_encoder=null"], "comes without one, train it with"),
        (["experts.style_encoder=nowhere"], "nowhere: no style_encoder.json here"),
        (["experts.style_pictures=nowhere"], "nowhere: no such folder"),
    ],
)
def test_what_is_missing_is_said_before_training(by_example, capsys, changes, message):
    assert by_example("run", *changes) == 2
    assert message in capsys.readouterr().err


def test_a_style_without_pictures_is_said(by_example, pictures, capsys):
    (pictures / "pixel-art").rename(pictures / "pixel")
    assert by_example("run") == 2
    assert "no images of style 'pixel-art', the nearest is 'pixel'" in capsys.readouterr().err


def test_another_encoder_does_not_continue_a_run(by_example, encoder, capsys):
    assert by_example("run", "train.steps=1") == 0
    torch.manual_seed(9)
    settings = EncoderSettings(levels=(-1, -2), tokens=2, width=4)
    save(encoder, StyleEncoder(new_tower(16, 8, 16, 2, 2), settings))
    assert by_example("run", "train.steps=2") == 2
    assert "experts.style_encoder" in capsys.readouterr().err
