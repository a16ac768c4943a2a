"""The bank that ships: its size, its styles, the command and the stylizer."""

import json
from pathlib import Path

import pytest
import torch

from pseudo_labels.stylemamba.bank import packaged
from pseudo_labels.stylemamba.bank.packaged import described, packaged_bank, packaged_folder
from pseudo_labels.stylize.registry import load_styles
from regionroute.cli.main import main as regionroute
from regionroute.data.images import read_image, write_image
from regionroute.errors import UserError
from regionroute.models.embedded import NAMES, nano_folder

WOODBLOCK = "ukiyo-e woodblock print"


@pytest.fixture
def photo(tmp_path, monkeypatch):
    """A smooth photo of 56 x 48 in the working folder."""
    monkeypatch.chdir(tmp_path)
    coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    image = torch.nn.functional.interpolate(coarse, (56, 48), mode="bicubic")[0].clamp(0, 1)
    write_image("photo.png", image)
    return read_image("photo.png")


def apply(*more):
    return regionroute(["mamba", "apply", "photo.png", "--out", "out.png", *more])


def test_its_weights_are_small():
    # The embedded bases alone stay below 40 MB (test_nano_photos). The bank is the only painter
    # that needs no reference image, so all weights together may exceed that by its 2 MB.
    files = [file for file in packaged_folder().rglob("*") if file.is_file()]
    own = sum(file.stat().st_size for file in files)
    assert own < 2e6
    bases = sum(f.stat().st_size for n in NAMES for f in nano_folder(n).rglob("*") if f.is_file())
    assert own + bases < 42e6
    assert {file.suffix for file in files} == {".json", ".safetensors"}


def test_its_styles_differ_and_leave_no_photo_alone(photo):
    bank = packaged_bank()
    assert len(bank.styles) >= 12
    painted = torch.cat([bank.paint(photo[None], w) for w in torch.eye(len(bank.styles))])
    assert torch.isfinite(painted).all()
    assert (painted - photo).abs().mean((1, 2, 3)).min() > 0.04
    apart = torch.cdist(painted.flatten(1), painted.flatten(1), p=1) / painted[0].numel()
    assert apart.fill_diagonal_(1).min() > 0.02


def test_line_art_is_ink_on_paper_and_neon_light_in_the_dark(photo):
    means = {
        name: float(packaged_bank().paint(photo[None], described(packaged_bank(), name)[0]).mean())
        for name in ("line art", "neon")
    }
    assert means["line art"] > 0.7
    assert means["neon"] < 0.4


def test_words_alone_restyle_a_photo(photo, capsys):
    assert apply("--style", WOODBLOCK) == 0
    assert "out.png: ukiyo-e" in capsys.readouterr().out
    facts = json.loads(Path("out.json").read_text())
    assert next(iter(facts["styles"])) == "ukiyo-e"
    assert "warnings" not in facts
    out = read_image("out.png")
    assert out.shape == photo.shape
    assert (out - photo).abs().mean() > 0.04


def test_a_second_run_replaces_the_first(photo):
    assert apply("--style", WOODBLOCK) == 0
    assert apply("--style", "neon") == 0
    assert json.loads(Path("out.json").read_text())["style"] == "neon"


def test_strength_zero_is_the_photo(photo):
    assert apply("--style", WOODBLOCK, "--strength", "0") == 0
    assert torch.equal(read_image("out.png"), photo)


def test_a_region_limits_it(photo):
    mask = torch.zeros(1, *photo.shape[-2:])
    mask[:, :20] = 1
    write_image("mask.png", mask)
    assert apply("--style", WOODBLOCK, "--region", "mask.png") == 0
    out = read_image("out.png")
    assert torch.equal(out[:, 20:], photo[:, 20:])
    assert (out - photo)[:, :20].abs().mean() > 0.04


def test_an_object_is_looked_for_with_the_default_base(photo, monkeypatch):
    mask = torch.zeros(1, *photo.shape[-2:])
    mask[..., 30:] = 1
    asked = []

    def find(image, word):
        asked.append(word)
        return mask, ["may be absent"]

    monkeypatch.setattr(packaged, "object_mask", find)
    assert apply("--style", "neon", "--object", "dog") == 0
    assert asked == ["dog"]
    assert torch.equal(read_image("out.png")[..., :30], photo[..., :30])
    assert json.loads(Path("out.json").read_text())["warnings"] == ["may be absent"]


@pytest.mark.slow
def test_the_default_base_finds_a_dog(assets):
    image = read_image(assets / "photos" / "dog_00.jpg")[:, ::3, ::3].contiguous()
    mask, _ = packaged.object_mask(image, "dog")
    assert mask.shape == (1, *image.shape[-2:])
    assert 0.1 < float(mask.mean()) < 0.95
    with pytest.raises(UserError, match="--object bicycle: not found in the photo"):
        packaged.object_mask(image, "bicycle")


def test_far_words_are_said_to_be_far(photo, capsys):
    assert apply("--style", "xqzt") == 0
    assert "no style of the bank is near 'xqzt'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--style", "neon", "--name", "x"], "--name goes with the folder of a fitted style"),
        (["--style", "neon", "--object", "dog", "--region", "m.png"], "not both"),
        (["--style", "."], "this folder holds no fitted style"),
        (["--style", " "], "the words are empty"),
        (["--style", ""], "--style is empty: give a value or leave it out"),
        (["--style", "neon", "--name", ""], "--name is empty"),
        (["--style", "neon", "--region", ""], "--region is empty"),
        (["--style", "neon", "--object", ""], "--object is empty"),
        (["--style", "neon", "--out", ""], "the name of the image to write is empty"),
        (["--style", "neon", "--bank", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_explained(photo, refused, arguments, message):
    command = ["mamba", "apply", "photo.png", "--out", "out.png", *arguments]
    assert message in refused(regionroute, command)


def test_as_a_stylizer_it_needs_no_settings(photo):
    Path("styles.yaml").write_text(
        f"styles:\n  print: {{phrase: {WOODBLOCK}, stylizer: mamba}}\n  neon: {{stylizer: mamba}}\n"
    )
    woodblock, neon = load_styles("styles.yaml")
    stylizer = woodblock.build()
    assert stylizer.fingerprint != neon.build().fingerprint
    made = stylizer.stylize(photo, woodblock.spec)
    weights = described(packaged_bank(), WOODBLOCK)[0]
    assert torch.equal(made, packaged_bank().paint(photo[None], weights)[0])
