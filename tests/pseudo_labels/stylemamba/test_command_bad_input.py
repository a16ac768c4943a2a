"""Everything a user can get wrong with `regionroute mamba`: one sentence, nothing lost."""

import pytest
import torch

from regionroute.cli.main import main as regionroute
from regionroute.data.images import write_image

FIT = ["mamba", "fit", "--prompt", "neon", "--images", "photos", "--out", "out", "--encoder",
       "random", "--vae", "random", "--device", "cpu", "fit.size=32", "fit.steps=1",
       "fusion.width=16", "fusion.blocks=1"]  # fmt: skip
PICTURE = ["mamba", "fit", "--style-image", "photos/a.png", "--images", "photos", "--out", "out"]
TRAIN = ["mamba", "train", "--images", "photos", "--out", "out", "--encoder", "random", "--vae",
         "random", "train.size=32", "--bank"]  # fmt: skip
APPLY = ["mamba", "apply", "photos/a.png", "--style", "style", "--out", "out.png"]


@pytest.fixture
def folder(tmp_path, pictures, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_image("photos/a.png", pictures[0])
    write_image("photos/b.png", pictures[1])
    write_image("mask.png", torch.ones(1, 32, 32))
    write_image("wide.png", torch.ones(1, 32, 40))
    (tmp_path / "file").write_text("text")
    (tmp_path / "dog.json").write_text('{"version": "5.2.1", "shapes": []}')  # of LabelMe
    (tmp_path / "empty").mkdir()
    (tmp_path / "twice.txt").write_text("neon\nneon\n")
    (tmp_path / "none.txt").write_text("# nothing\n\n")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/style.json").write_text('{"styles": 3}')
    (tmp_path / "labels.jsonl").write_text(
        '{"file": "photos/a.png", "word": "dog", "mask": "mask.png"}\n'
    )
    return tmp_path


FITS = [
    (["mamba", "fitt"], "did you mean fit"),
    (["mamba", "fit"], "give the style either by --prompt WORDS or by --style-image"),
    ([*FIT, "--style-image", "photos/a.png"], "either by --prompt WORDS or by --style-image"),
    (["mamba", "fit", "--prompt", "x"], "--images is missing"),
    (["mamba", "fit", "--prompt", "x", "--images", "photos"], "--out is missing"),
    ([*FIT, "--out", "file"], "file: this is a file, give a folder"),
    ([*FIT, "--images", ""], "--images is empty"),
    ([*FIT, "--images", "nowhere"], "nowhere: no such image or folder"),
    (["mamba", "fit", "--prompt", "x", "--images", "empty", "--out", "o"], "there are no images"),
    ([*FIT, "--images", "file"], "file: this image cannot be read"),
    ([*FIT, "--prompt", " "], "the style's words are empty"),
    ([*FIT, "--prompt", "a photo"], "is the neutral style"),
    ([*FIT, "--vae", "nowhere/at/all"], "--vae nowhere/at/all: cannot be loaded"),
    ([*FIT, "--vae", "empty"], "--vae empty: no config.json"),
    ([*FIT, "--encoder", "empty"], "--encoder empty: cannot be loaded"),
    ([*FIT, "--vgg", "nowhere"], "--vgg nowhere: no such file"),
    ([*FIT, "--vgg", "file"], "--vgg file: not torchvision's VGG16"),
    (PICTURE, "give --vgg FILE"),
    ([*FIT, "fit.size=33"], "size is 33: this codec takes multiples of 2"),
    ([*FIT, "fit.stepz=3"], "nearest known one is 'fit.steps'"),
    ([*FIT, "fit.steps=0"], "fit.steps must"),
    ([*FIT, "fusion.width=18"], "fusion.width must"),
    ([*FIT, "fusion.directions=2"], "fusion.directions must"),
    (
        [*FIT, *(f"loss.{name}=0" for name in ("directional", "masked", "content", "tv"))],
        "loss must have a weight above 0",
    ),
    ([*FIT, "fusion.scan=fused"], "mamba-ssm"),
    ([*FIT, "--device", "cuda:9"], "device cuda:9: not usable here"),
    ([*FIT, "--out", "photos/"], "--out photos/: the next run would take its preview for a photo"),
    ([*FIT, "--labels", "labels.jsonl"], "--labels goes with --region WORD"),
    ([*FIT, "--region", "mask.png"], "the mask of one photo"),
    ([*FIT, "--region", "dog", "--labels", "labels.jsonl"], "b.png is not listed"),
    ([*FIT, "--promt", "x"], "unrecognized arguments: --promt"),
    ([*TRAIN[:-1]], "--bank is missing"),
    ([*TRAIN, "nowhere"], "nowhere: no such file"),
    ([*TRAIN, "twice.txt"], "'neon' is listed twice"),
    ([*TRAIN, "none.txt"], "there are no styles"),
]


@pytest.mark.parametrize(("arguments", "told"), FITS)
def test_wrong_fits(folder, refused, arguments, told):
    assert told in refused(regionroute, arguments)
    assert not (folder / "out").exists()


@pytest.fixture(scope="module")
def style(tmp_path_factory, pictures_once):
    """A fitted style, made once."""
    folder = tmp_path_factory.mktemp("fitted")
    write_image(folder / "a.png", pictures_once)
    arguments = [*FIT, "--images", str(folder / "a.png"), "--out", str(folder / "style")]
    arguments[arguments.index("photos")] = str(folder / "a.png")
    assert regionroute(arguments) == 0
    return folder / "style"


@pytest.fixture(scope="module")
def pictures_once():
    return torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))


APPLIES = [
    (["mamba", "apply"], "required: photo, --style, --out"),
    ([*APPLY, "--style", "styles/nowhere"], "styles/nowhere: no style.json"),
    ([*APPLY, "--style", "damaged"], "damaged/style.json: 'styles' is wrong or missing"),
    ([*APPLY, "--strength", "3"], "--strength 3.0: must be between 0 and 2"),
    ([*APPLY, "--strength", "nan"], "--strength nan: must be between 0 and 2"),
    ([*APPLY, "--feather", "-1"], "--feather -1: must be between 0 and 256"),
    ([*APPLY, "--out", "out.jpg"], "give a name that ends in .png"),
    ([*APPLY, "--out", "photos/a.png"], "this is the photo, choose another name"),
    ([*APPLY, "--out", "mask.png", "--region", "mask.png"], "would overwrite the input mask.png"),
    ([*APPLY, "--out", "dog.png"], "dog.json: the settings of dog.png would overwrite this file"),
    ([*APPLY, "--out", "file/out.png"], "file is a file, not a folder"),
    ([*APPLY, "--region", "dog"], "--region dog: no such mask"),
    ([*APPLY, "--region", "wide.png"], "the mask is 40x32 pixels but its image is 32x32"),
    (
        [*APPLY, "--region", "cat", "--labels", "labels.jsonl"],
        "only these words for a.png: dog",
    ),
    ([*APPLY, "--labels", "labels.jsonl"], "--labels goes with --region"),
    ([*APPLY, "--name", "woodcut"], "no style 'woodcut' in this folder, the nearest is 'neon'"),
    ([*APPLY, "--name", "neon:-1"], "the weight must be 0 or more"),
    ([*APPLY, "--name", "neon:0"], "at least one weight must be above 0"),
    ([*APPLY, "--prompt", "x"], "--prompt replaces --name and needs --encoder"),
    ([*APPLY, "--vae", "patch_vae"], "with other weights than those found here"),
]


@pytest.mark.parametrize(("arguments", "told"), APPLIES)
def test_wrong_applications(folder, style, refused, arguments, told):
    from pseudo_labels.stylemamba.codecs import random_codec

    random_codec(seed=5).vae.save_pretrained(folder / "patch_vae")
    arguments = [str(style) if argument == "style" else argument for argument in arguments]
    assert told in refused(regionroute, arguments)
    assert not (folder / "out.png").exists()


def test_damaged_weights(folder, style, refused):
    for file in ("style.json", "fusion.safetensors"):
        (folder / "copy").mkdir(exist_ok=True)
        (folder / "copy" / file).write_bytes((style / file).read_bytes())
    weights = folder / "copy/fusion.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    arguments = ["copy" if argument == "style" else argument for argument in APPLY]
    assert "missing or damaged, fit the style again" in refused(regionroute, arguments)
    text = (style / "style.json").read_text().replace('"width": 16', '"width": 20')
    (folder / "copy/style.json").write_text(text)
    weights.write_bytes((style / "fusion.safetensors").read_bytes())
    assert "these weights do not fit style.json" in refused(regionroute, arguments)


@pytest.mark.parametrize("action", ["fit", "train", "apply"])
def test_help_teaches(action, capsys):
    with pytest.raises(SystemExit):
        regionroute(["mamba", action, "--help"])
    assert f"regionroute mamba {action} " in capsys.readouterr().out
