"""The style encoder: shapes, what learns, files, and every way they can be bad."""

import json

import pytest
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from regionroute.adapters.files.style_embeddings import StyleEmbeddings, load_style_embeddings
from regionroute.adapters.style_encoder import (
    EncoderSettings,
    StyleEncoder,
    encoder_identity,
    load_style_encoder,
    load_tower,
    new_tower,
    save_style_encoder,
)
from regionroute.errors import UserError

TINY = {"levels": (-1, -2, -3), "tokens": 2, "width": 8}


def build(tower=None, **settings):
    torch.manual_seed(0)
    return StyleEncoder(
        new_tower(28, 14, 32, 4, 2), EncoderSettings(tower=tower, **TINY | settings)
    )


def pictures(count=3, size=28):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_embeddings_are_levels_by_tokens_by_width():
    encoder = build()
    assert encoder.style_dim == 48
    assert encoder(pictures()).shape == (3, 48)
    assert encoder.embed(pictures(1, 50)[0]).shape == (48,)


def test_the_published_sizes_give_3072_values_from_half_a_million_weights():
    with torch.device("meta"):
        config = SiglipVisionConfig(
            hidden_size=1152, intermediate_size=4304, num_hidden_layers=27,
            num_attention_heads=16, image_size=384, patch_size=14,
        )  # fmt: skip
        encoder = StyleEncoder(SiglipVisionModel(config), EncoderSettings(tower="x"))
        assert encoder.style_dim == 3072
        assert encoder.heads[0](torch.empty(2, 729, 1152)).shape == (2, 8, 128)
    learnt = sum(x.numel() for x in encoder.parameters() if x.requires_grad)
    assert learnt == 3 * (729 * 8 + 8 + 2 * 1152 + 1152 * 128 + 128)


def test_a_level_is_reduced_over_tokens_then_over_width():
    head = build().heads[0]
    states = torch.randn(2, 4, 32)
    kept = torch.nn.functional.silu(
        torch.einsum("bnd,mn->bmd", states, head.reduce.weight) + head.reduce.bias[:, None]
    )
    expected = head.project(head.norm(kept))
    torch.testing.assert_close(head(states), expected)


def test_each_level_reads_its_own_hidden_state():
    encoder = build().eval()
    states = encoder.tower(
        (pictures() - 0.5) / 0.5, output_hidden_states=True
    ).hidden_states  # the embeddings and four layers
    assert len(states) == 5
    expected = [
        head(states[level]) for head, level in zip(encoder.heads, TINY["levels"], strict=True)
    ]
    torch.testing.assert_close(encoder(pictures()), torch.cat(expected, 1).flatten(1))


def test_each_level_learns_and_a_named_tower_does_not():
    encoder = build(tower="google/somewhere").train()
    encoder(pictures()).square().sum().backward()
    assert all(x.grad.abs().sum() > 0 for head in encoder.heads for x in head.parameters())
    assert all(x.grad is None for x in encoder.tower.parameters())
    assert not encoder.tower.training
    own = build()
    own(pictures()).square().sum().backward()
    assert own.tower.embeddings.patch_embedding.weight.grad.abs().sum() > 0


def test_pictures_of_any_size_and_aspect_are_seen_whole():
    encoder = build()
    wide = torch.zeros(3, 10, 90)
    wide[:, :, -5:] = 1  # lost by a crop to the middle
    assert encoder.prepare(wide)[0, :, :, -1].mean() > 0.5


def test_what_is_saved_loads_the_same_and_frozen(tmp_path):
    encoder = build(styles=("a", "b"))
    save_style_encoder(tmp_path, encoder)
    loaded = load_style_encoder(tmp_path)
    assert loaded.settings == encoder.settings
    assert not any(x.requires_grad for x in loaded.parameters())
    torch.testing.assert_close(loaded(pictures()), encoder.eval()(pictures()))


def test_a_named_tower_is_loaded_from_where_it_is_and_not_copied(tmp_path):
    tower = new_tower(28, 14, 32, 4, 2)
    tower.save_pretrained(tmp_path / "siglip")
    encoder = StyleEncoder(tower.eval(), EncoderSettings(tower=str(tmp_path / "siglip"), **TINY))
    save_style_encoder(tmp_path / "encoder", encoder)
    assert not (tmp_path / "encoder" / "tower").exists()
    loaded = load_style_encoder(tmp_path / "encoder")
    torch.testing.assert_close(loaded(pictures()), encoder(pictures()))


def test_identity_follows_the_weights(tmp_path):
    for name in "ab":
        save_style_encoder(tmp_path / name, build())
    assert encoder_identity(tmp_path / "a") == encoder_identity(tmp_path / "b")
    other = build()
    with torch.no_grad():
        other.heads[1].reduce.bias += 1
    save_style_encoder(tmp_path / "b", other)
    assert encoder_identity(tmp_path / "a") != encoder_identity(tmp_path / "b")


@pytest.fixture
def saved(tmp_path):
    save_style_encoder(tmp_path, build())
    return tmp_path


def test_a_damaged_encoder_is_refused_by_the_name_of_its_file(saved):
    good = (saved / "style_encoder.json").read_text()
    for name, spoil, message in [
        ("style_encoder.json", lambda p: p.unlink(), "no style_encoder.json here"),
        ("style_encoder.json", lambda p: p.write_text("{"), "style_encoder.json"),
        ("style_encoder.json", lambda p: p.write_text('{"schema": 2}'), "schema"),
        (
            "style_encoder.json",
            lambda p: p.write_text(json.dumps(json.loads(good) | {"levels": [-9]})),
            "levels: -9 is not there, the tower has 5 hidden states",
        ),
        ("head.safetensors", lambda p: p.write_bytes(b"nothing"), "this file is damaged"),
        ("head.safetensors", lambda p: p.unlink(), "head.safetensors: this file is missing"),
        ("tower/model.safetensors", lambda p: p.unlink(), "tower: cannot be loaded"),
    ]:
        save_style_encoder(saved, build())
        spoil(saved / name)
        with pytest.raises(UserError, match=message):
            load_style_encoder(saved)


def test_another_models_weights_are_no_tower(tmp_path):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    CLIPVisionModel(
        CLIPVisionConfig(**sizes, num_attention_heads=2, image_size=28, patch_size=14)
    ).save_pretrained(tmp_path / "clip")
    with pytest.raises(UserError, match="clip: "):
        load_tower(str(tmp_path / "clip"))
    with pytest.raises(UserError, match="nowhere: no such folder"):
        load_tower(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [((30, 14, 32, 2, 2), "no multiple of patch_size"), ((28, 14, 33, 2, 2), "multiple of heads")],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(UserError, match=message):
        new_tower(*sizes)


def embeddings():
    return StyleEmbeddings({"Ink": torch.eye(3)[0], "oil": torch.eye(3)[1]})


def test_styles_by_name_blend_and_are_found_again(tmp_path):
    styles = embeddings()
    assert styles.name(" ink ") == "Ink"
    torch.testing.assert_close(
        styles.blend({"Ink": 3.0, "oil": 1.0}), torch.tensor([0.75, 0.25, 0.0])
    )
    assert styles.nearest(torch.tensor([0.1, 2.0, 0.0]))[0] == "oil"
    with pytest.raises(UserError, match='not trained on style "oyl", the nearest is "oil"'):
        styles.name("oyl")
    styles.save(tmp_path)
    loaded = load_style_embeddings(tmp_path, 3)
    assert {n: x.tolist() for n, x in loaded.by_name.items()} == {
        n: x.tolist() for n, x in styles.by_name.items()
    }


def test_embeddings_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(UserError, match="this file is missing"):
        load_style_embeddings(tmp_path, 3)
    embeddings().save(tmp_path)
    with pytest.raises(UserError, match="do not fit these experts"):
        load_style_embeddings(tmp_path, 4)
    (tmp_path / "style_embeddings.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="damaged"):
        load_style_embeddings(tmp_path, 3)
