"""`regionroute mamba` and the stylizer, with random networks: files, blends, regions, resuming."""

import json
import pickle

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pseudo_labels.stylemamba import stylizer as stylizer_module
from pseudo_labels.stylemamba.saved import load_style
from pseudo_labels.stylemamba.stylizer import MambaStylizer
from pseudo_labels.stylize.registry import load_styles
from regionroute.cli.main import main as regionroute
from regionroute.cli.mamba.main import main as mamba
from regionroute.data.images import read_image, write_image
from regionroute.data.manifest import StyleSpec
from regionroute.errors import UserError
from regionroute.files import read_jsonl

SMALL = ["fusion.width=16", "fusion.blocks=1", "fusion.states=4", "loss.masks=1"]
FIT = [*SMALL, "fit.size=32", "fit.steps=2"]
TRAIN = [*SMALL, "train.size=32", "train.batch=2", "train.warmup=1", "train.log_every=1",
         "train.save_every=2", "train.preview_every=2", "train.judged=1"]  # fmt: skip
RANDOM = ["--encoder", "random", "--vae", "random", "--device", "cpu"]
SPEC = StyleSpec("neon")


@pytest.fixture
def folder(tmp_path, pictures, vgg_weights, monkeypatch):
    """Two photos of odd sizes with a mask and labels, style pictures, VGG weights, a bank."""
    monkeypatch.chdir(tmp_path)
    wide = torch.nn.functional.interpolate(pictures[:1], (45, 61), mode="bilinear")[0]
    write_image("photos/a.png", wide)
    write_image("photos/b.png", pictures[1])
    mask = torch.zeros(1, 45, 61)
    mask[:, 10:30, 20:50] = 1
    write_image("mask.png", mask)
    (tmp_path / "labels.jsonl").write_text(
        json.dumps({"file": "photos/a.png", "word": "disc", "mask": "mask.png"}) + "\n"
    )
    write_image("art/red.png", torch.rand(3, 40, 40) * torch.tensor([1, 0.2, 0.1])[:, None, None])
    write_image("art/blue.png", torch.rand(3, 50, 40) * torch.tensor([0.1, 0.2, 1])[:, None, None])
    save_file(vgg_weights(), "vgg.safetensors")
    (tmp_path / "bank.txt").write_text("# two\nneon\n\nwoodcut\n")
    return tmp_path


def run(*arguments):
    assert regionroute(["mamba", *map(str, arguments)]) == 0


def fitted(out="styles/neon", *more):
    run("fit", "--prompt", "neon", "--images", "photos", "--out", out, *RANDOM, *FIT, *more)


def test_fit_and_apply_and_both_confess_random_weights(folder, capsys):
    fitted()
    said = capsys.readouterr()
    assert "neon: directional score" in said.out
    assert "random weights (vae and encoder)" in said.err
    facts = json.loads((folder / "styles/neon/style.json").read_text())
    assert facts["random"] == ["vae", "encoder"]
    assert facts["settings"]["pictures"] == ["a.png", "b.png"]
    assert set(facts["settings"]["scores"]["neon"]) == {"directional", "ssim"}
    rows = read_jsonl(folder / "styles/neon/losses.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    preview = Image.open(folder / "styles/neon/preview.png")
    assert json.loads(preview.text["parameters"]) == {"random_weights": ["vae", "encoder"]}
    assert (folder / "styles/neon/config.yaml").is_file()

    run("apply", "photos/a.png", "--style", "styles/neon", "--out", "out.png", "--strength", "0.5")
    assert "random weights" in capsys.readouterr().err
    settings = json.loads((folder / "out.json").read_text())
    assert settings["random_weights"] == ["vae", "encoder"]
    assert settings["strength"] == 0.5
    picture = Image.open(folder / "out.png")
    assert picture.size == (61, 45)
    assert json.loads(picture.text["parameters"]) == settings


def test_a_region_is_restyled_and_the_rest_is_bit_for_bit(folder):
    fitted()
    common = ("apply", "photos/a.png", "--style", "styles/neon", "--out")
    run(*common, "by_mask.png", "--region", "mask.png")
    run(*common, "by_word.png", "--region", "Disc", "--labels", "labels.jsonl")
    source, out = read_image("photos/a.png"), read_image("by_mask.png")
    assert torch.equal(out, read_image("by_word.png"))
    inside = torch.zeros(1, 45, 61, dtype=torch.bool)
    inside[:, 10:30, 20:50] = True
    assert torch.equal(out[~inside.expand(3, -1, -1)], source[~inside.expand(3, -1, -1)])
    assert (out - source)[inside.expand(3, -1, -1)].abs().max() > 0.01


def test_strength_goes_from_the_photo_to_the_style_and_beyond(folder):
    fitted("styles/neon", "fit.learning_rate=0.02")
    style = load_style("styles/neon")
    image = read_image("photos/a.png")[None]
    z = style.codec.encode(style.codec.padded(image))
    plain = style.codec.decode(z)[..., :45, :61]
    assert torch.equal(style.apply(image, strength=0), plain)
    half, full = (style.apply(image, strength=s) for s in (0.5, 1.0))
    assert 0 < (half - plain).abs().mean() < (full - plain).abs().mean()
    assert image.shape == full.shape
    both = style.apply(torch.cat([image, image.flip(-1)]))
    torch.testing.assert_close(both[:1], full, rtol=1e-4, atol=1e-5)


def test_a_style_picture_needs_no_other_weights_than_vgg(folder, capsys):
    options = ["--vgg", "vgg.safetensors", "--vae", "patch", "--device", "cpu", *SMALL]
    run("fit", "--picture", "art/red.png", "--picture", "art/blue.png", "--images", "photos/a.png",
        "--out", "styles/art", *options, "fit.size=64", "fit.steps=4",
        "fit.learning_rate=0.02")  # fmt: skip
    assert "random" not in capsys.readouterr().err
    style = load_style("styles/art")
    assert style.facts.styles == ["red.png", "blue.png"]
    assert style.facts.random == []
    assert style.facts.settings["loss"]["softening"] == 0.5
    run("apply", "photos/a.png", "--style", "styles/art", "--out", "one.png", "--name", "red.png")
    run("apply", "photos/a.png", "--style", "styles/art", "--out", "mix.png",
        "--name", "red.png:0.7", "--name", "blue.png:0.3")  # fmt: skip
    image, both = read_image("photos/a.png")[None], style.descriptions
    red, blue, mixed = (style.apply(image, descriptions=both, weights=w)
                        for w in ([1, 0], [0, 1], [0.7, 0.3]))  # fmt: skip
    assert not torch.equal(red, blue)
    assert not torch.equal(mixed, red)
    assert (read_image("mix.png") - mixed[0]).abs().max() < 0.6 / 255
    assert json.loads((folder / "mix.json").read_text())["weights"] == [0.7, 0.3]


def train(out, *more):
    run("train", "--bank", "bank.txt", "--images", "photos", "--out", out, *RANDOM, *TRAIN, *more)


def test_stopped_training_goes_on_to_the_same_module(folder, capsys, monkeypatch):
    from pseudo_labels.stylemamba import training

    train("whole", "train.steps=4")
    step = training._step

    def fails(run_, number):
        if number == 4:
            raise KeyboardInterrupt
        return step(run_, number)

    monkeypatch.setattr(training, "_step", fails)
    with_four = ["train", "--bank", "bank.txt", "--images", "photos", "--out", "parts", *RANDOM]
    assert mamba([*with_four, *TRAIN, "train.steps=4"]) == 130
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    train("parts", "train.steps=4")
    for file in ("fusion.safetensors", "losses.jsonl"):
        assert (folder / "whole" / file).read_bytes() == (folder / "parts" / file).read_bytes()
    assert [row["step"] for row in read_jsonl("parts/losses.jsonl")] == [1, 2, 3, 4]
    assert (folder / "whole/previews/step-000004.png").is_file()
    assert mamba([*with_four, *TRAIN, "train.steps=5"]) == 2
    assert "other styles, photos, networks or settings" in capsys.readouterr().err


def test_a_trained_module_takes_new_words(folder, capsys):
    train("bank", "train.steps=2")
    common = ["apply", "photos/b.png", "--style", "bank", "--out", "new.png"]
    run(*common, "--prompt", "charcoal", "--encoder", "random")
    assert json.loads((folder / "new.json").read_text())["styles"] == ["charcoal"]
    run(*common, "--name", "neon")
    assert mamba(common) == 2
    assert "holds 2 styles: name one" in capsys.readouterr().err


class TestStylizer:
    def make(self, **more):
        settings = {"images": "photos", "encoder": "random", "vae": "random", "cache": "cache"}
        return MambaStylizer.build(**settings | {"overrides": FIT, "prompt": "neon"} | more)

    def test_it_fits_once_and_keeps_what_it_fitted(self, folder, pictures, monkeypatch):
        fits = []
        real = stylizer_module.fit_style
        monkeypatch.setattr(stylizer_module, "fit_style", lambda *a: fits.append(a) or real(*a))
        first = self.make()
        assert not fits
        assert first.remarks == {"random_weights": ["encoder", "vae"]}
        content = read_image("photos/a.png")
        before = content.clone()
        styled = first.stylize(content, SPEC)
        assert styled.shape == content.shape
        assert 0 <= styled.min() <= styled.max() <= 1
        assert torch.equal(content, before)
        again = self.make()
        assert again.fingerprint == first.fingerprint
        assert torch.equal(again.stylize(content, SPEC), styled)
        assert len(fits) == 1

    def test_fingerprints_follow_what_matters(self, folder):
        prints = {self.make().fingerprint, self.make(strength=0.5).fingerprint}
        prints |= {self.make(prompt="chalk").fingerprint, self.make(gate=-1).fingerprint}
        prints.add(self.make(overrides=[*FIT, "fit.seed=1"]).fingerprint)
        write_image("photos/b.png", torch.rand(3, 40, 40))
        prints.add(self.make().fingerprint)
        assert len(prints) == 6

    def test_it_is_fitted_before_it_goes_to_another_process(self, folder):
        stylizer = self.make()
        other = pickle.loads(pickle.dumps(stylizer))
        assert list((folder / "cache").glob("*/style.json"))
        content = read_image("photos/b.png")
        assert torch.equal(other.stylize(content, SPEC), stylizer.stylize(content, SPEC))

    def test_the_gate_refuses_weak_pictures(self, folder):
        content = read_image("photos/b.png")
        assert self.make(gate=-1.0).stylize(content, SPEC).shape == content.shape
        with pytest.raises(UserError, match=r"directional score is -?0\.\d+, below the gate 0.99"):
            self.make(gate=0.99).stylize(content, SPEC)

    def test_a_styles_file_gives_the_phrase_as_the_prompt(self, folder):
        fitted()
        (folder / "sub").mkdir()
        settings = f"images: ../photos, encoder: random, vae: random, overrides: {json.dumps(FIT)}"
        (folder / "sub/styles.yaml").write_text(
            f"styles:\n  a:\n    phrase: neon\n    stylizer: mamba\n    settings: {{{settings}}}\n"
            "  b: {stylizer: mamba, settings: {fitted: ../styles/neon}}\n"
        )
        a, b = load_styles("sub/styles.yaml")
        content = read_image("photos/b.png")
        assert torch.equal(a.build().stylize(content, a.spec), b.build().stylize(content, b.spec))

    def test_label_makes_pairs_with_it(self, folder):
        fitted()
        (folder / "styles.yaml").write_text(
            "styles:\n  neon: {stylizer: mamba, settings: {fitted: styles/neon}}\n"
        )
        assert regionroute(["label", "--labels", "labels.jsonl", "--styles", "styles.yaml",
                            "--out", "data", "--workers", "1", "--size", "64"]) == 0  # fmt: skip
        [row] = read_jsonl("data/manifest.jsonl")
        assert row["provenance"]["stylizer"] == "mamba"
        assert row["provenance"]["random_weights"] == ["vae", "encoder"]
        assert (folder / "data" / row["target"]).is_file()

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"images": None, "picture": "photos/b.png"}, "need 'images' to fit on"),
            ({"fitted": "styles"}, "either 'fitted', a folder, or 'images'"),
            ({"prompt": None}, "give a 'prompt' or a 'picture'"),
            ({"strength": 3}, "strength of a mamba style is 3"),
            ({"gate": 2}, "gate of a mamba style"),
            ({"images": "nowhere"}, "nowhere: no such image or folder"),
            ({"overrides": ["fit.stepz=3"]}, "nearest known one is 'fit.steps'"),
            ({"images": None, "fitted": "photos"}, "photos: no style.json"),
        ],
    )
    def test_wrong_settings_are_named(self, folder, settings, message):
        with pytest.raises(UserError, match=message):
            self.make(**settings)
