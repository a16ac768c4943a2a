"""FLUX.2-klein folders that are damaged, of another family, or not to be had."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from regionroute.cli import main as cli
from regionroute.errors import UserError
from regionroute.models.loading import load_base


@pytest.fixture
def broken(tiny_klein, tmp_path):
    """A copy of the base to damage."""
    return shutil.copytree(tiny_klein, tmp_path / "base")


def index(**changes):
    def change(base):
        path = base / "model_index.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def drop_statistics(base):
    file = base / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["bn.running_var"]
    save_file(weights, file, metadata={"format": "pt"})


DAMAGES = [
    (index(_class_name="Flux2Pipeline"), "this is a Flux2Pipeline, but editing needs a Flux"),
    (index(_class_name="Flux2KleinKVPipeline"), "this is a Flux2KleinKVPipeline"),
    (index(_class_name=None), "this is a None"),
    (index(vae=["diffusers", "AutoencoderKL"]), "its vae is a AutoencoderKL, known are Autoencod"),
    (index(_class_name="FluxKontextPipeline"), "text_encoder_2/config.json is missing"),
    (lambda base: shutil.rmtree(base / "tokenizer"), "tokenizer has no tokenizer.json"),
    (lambda base: (base / "tokenizer/tokenizer.json").write_text("{"), "damaged"),
    (lambda base: (base / "text_encoder/model.safetensors").unlink(), "text_encoder has no weigh"),
    (lambda base: (base / "transformer/config.json").write_text("[]"), "damaged"),
    (drop_statistics, "vae: its weights lack bn.running_var"),
    (
        lambda base: (base / "regionroute.json").write_text('{"max_text_length": 900}'),
        "at most 512",
    ),
]


@pytest.mark.parametrize(("damage", "sentence"), DAMAGES)
def test_a_damaged_folder_is_named_in_one_sentence(broken, damage, sentence):
    damage(broken)
    with pytest.raises(UserError, match=sentence) as error:
        load_base(str(broken))
    assert str(broken) in str(error.value)
    assert "\n" not in str(error.value)


def test_the_command_says_so_too(broken, tiny_manifest, tmp_path, refused):
    index(_class_name="Flux2Pipeline")(broken)
    photo = tiny_manifest / "0.context.png"
    arguments = ["edit", photo, "--object", "dog", "--style", "ink", "--zero-shot"]
    sentence = refused(cli.main, [*arguments, "--base", broken, "--out", tmp_path / "out.png"])
    assert "FluxKontextPipeline or Flux2KleinPipeline" in sentence
