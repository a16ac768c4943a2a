"""Encoders and codecs: random ones, folders as the libraries save them, and what is refused."""

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

from pseudo_labels.stylemamba.codecs import load_codec, patch_codec, random_codec
from pseudo_labels.stylemamba.encoders import (
    GramEncoder,
    StyleTarget,
    describe,
    load_encoder,
    random_encoder,
)
from regionroute.data.images import write_image
from regionroute.errors import UserError
from regionroute.models.tokenizers import build_t5_tokenizer
from regionroute.models.vgg import VggFeatures


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    """A random SigLIP as transformers saves it."""
    folder = tmp_path_factory.mktemp("siglip")
    tokenizer = build_t5_tokenizer(["a", "photo", "woodcut", "of", "picture"], 64)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 64}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        SiglipModel(
            SiglipConfig(
                text_config=small | text, vision_config=small | {"image_size": 32, "patch_size": 8}
            )
        ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_a_siglip_folder_embeds_like_the_model_with_its_own_processor(siglip):
    encoder = load_encoder(str(siglip))
    picture = (
        torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)) * 255
    ).round() / 255
    processor = SiglipImageProcessor.from_pretrained(siglip)
    pixels = processor(images=(picture * 255).byte(), return_tensors="pt")["pixel_values"]
    expected = encoder.model.get_image_features(pixel_values=pixels).pooler_output
    ours = encoder.embed(picture[None])
    torch.testing.assert_close(
        ours, torch.nn.functional.normalize(expected, dim=-1), rtol=1e-4, atol=1e-5
    )
    assert encoder.width == 16
    assert encoder.facts["random"] is False


def test_texts_are_padded_to_the_full_length(siglip):
    encoder = load_encoder(str(siglip))
    tokens = encoder._tokenize(["woodcut"])
    assert tokens["input_ids"].shape == (1, 64)


@pytest.mark.parametrize("size", [(32, 32), (50, 71), (20, 20)])
def test_embeddings_are_of_length_one_and_differentiable(size):
    encoder = random_encoder()
    images = torch.rand(2, 3, *size).requires_grad_()
    embedded = encoder.embed(images)
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(2))
    embedded[:, 0].sum().backward()
    assert (images.grad != 0).float().mean() > 0.5
    assert all(p.grad is None for p in encoder.model.parameters())


def test_words_have_directions_that_differ():
    encoder = random_encoder()
    source = torch.zeros(1, encoder.width)
    first, second = (encoder.target(words).direction(source)[0] for words in ("woodcut", "neon"))
    assert first.norm().item() == pytest.approx(1)
    assert first @ second < 0.99
    described = describe(encoder, encoder.target("neon"), source, "both")
    torch.testing.assert_close(described[32:], second * 32**0.5)
    torch.testing.assert_close(described.square().mean(), torch.tensor(1.0))
    assert describe(encoder, encoder.target("neon"), source, "text").shape == (32,)


@pytest.mark.parametrize("words", ["", "  ", "a photo", "Photo"])
def test_words_that_name_no_style_are_refused(words):
    with pytest.raises(UserError, match=r"empty|neutral"):
        random_encoder().target(words)


def test_gram_embeddings_do_not_know_where_things_are(tmp_path, vgg_weights):
    encoder = GramEncoder(VggFeatures(vgg_weights()), "vgg", 32)
    tile = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    picture = tile.repeat(1, 1, 4, 4)
    here, there = encoder.embed(picture), encoder.embed(picture.roll((16, 16), (2, 3)))
    torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-4)
    assert here.norm().item() == pytest.approx(1, abs=1e-5)
    write_image(tmp_path / "style.png", torch.rand(3, 40, 60))
    target = encoder.target(str(tmp_path / "style.png"))
    expected = torch.nn.functional.normalize(target.embedding - here, dim=-1)
    torch.testing.assert_close(target.direction(here), expected)
    assert target.name == "style.png"


def test_a_gram_summary_is_the_diagonals(vgg_weights):
    encoder = GramEncoder(VggFeatures(vgg_weights(2)), "vgg", 32)
    blocks = [torch.rand(n, n) for n in encoder._channels]
    vector = torch.cat([block.flatten() for block in blocks])[None]
    expected = torch.cat([block.diagonal() for block in blocks])[None]
    assert torch.equal(encoder.summarise(vector), expected)
    assert encoder.width == expected.shape[1]


def test_a_target_without_neutral_starts_at_the_photo():
    target = StyleTarget("x", torch.tensor([1.0, 0.0]))
    directions = target.direction(torch.tensor([[0.0, 0.0], [1.0, -3.0]]))
    torch.testing.assert_close(directions, torch.eye(2))


class TestCodecs:
    def test_a_folder_or_its_vae_subfolder_loads(self, tmp_path):
        codec = random_codec()
        codec.vae.save_pretrained(tmp_path / "pipeline" / "vae")
        for folder in (tmp_path / "pipeline", tmp_path / "pipeline" / "vae"):
            loaded = load_codec(str(folder))
            assert loaded.facts["weights"] == codec.facts["weights"]
            assert (loaded.channels, loaded.multiple) == (4, 2)
            assert isinstance(loaded.vae, AutoencoderKL)

    def test_patches_give_a_smooth_picture_back(self):
        ramp = torch.linspace(0, 1, 64)
        picture = torch.stack(
            [ramp[:, None].expand(64, 64), ramp.expand(64, 64), ramp.flip(0).expand(64, 64)]
        )
        codec = patch_codec(picture[None], channels=16, levels=3)
        again = codec.decode(codec.encode(picture[None]))[0]
        assert (again - picture).abs().max() < 0.02
        assert codec.multiple == 8

    def test_padding_reaches_the_next_multiple(self):
        codec = patch_codec(torch.rand(1, 3, 64, 64), channels=16, levels=3)
        assert codec.padded(torch.rand(1, 3, 33, 40)).shape == (1, 3, 40, 40)
        picture = torch.rand(1, 3, 40, 48)
        assert codec.padded(picture) is picture

    def test_small_pictures_cannot_teach_a_patch_codec(self):
        with pytest.raises(UserError, match="at least 32 pixels"):
            patch_codec(torch.rand(1, 3, 24, 24))


class TestRefusals:
    def test_folders_of_something_else(self, tmp_path, siglip):
        for load, flag in ((load_encoder, "--encoder"), (load_codec, "--vae")):
            with pytest.raises(UserError, match=flag):
                load(str(tmp_path))
        (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
        with pytest.raises(UserError, match="this is a UNet2DModel"):
            load_codec(str(tmp_path))
        (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
        with pytest.raises(UserError, match="cannot be loaded"):
            load_codec(str(tmp_path))

    def test_an_encoder_that_lacks_weights(self, tmp_path, siglip):
        for file in siglip.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        state = load_file(tmp_path / "model.safetensors")
        state.pop("logit_scale")
        save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match="lack logit_scale"):
            load_encoder(str(tmp_path))
