"""Training of the first block's word heads: what it learns, what it leaves, resume, mistakes."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file

from regionroute.config.io import load_config
from regionroute.errors import UserError
from regionroute.models.embedded import nano_folder
from regionroute.models.image_encoder import ImageEncoder
from regionroute.models.loading import load_base
from train.pretrain import train_word_attention as training
from train.pretrain.image_encoder.config import CompositionsConfig
from train.pretrain.image_encoder.file import save_image_encoder
from train.pretrain.train_word_attention import main
from train.pretrain.word_attention.config import WordAttentionConfig
from train.pretrain.word_attention.heads import WordHeads, context_features
from train.pretrain.word_attention.images import load_images
from train.pretrain.word_attention.prompts import Words, named, nowhere, token_ids
from train.pretrain.word_attention.start import Sides, balanced, channels, start_heads

SMALL = [
    "compositions.side=32",
    "compositions.detail=1",
    "compositions.count=12",
    "compositions.held_out=4",
    "compositions.photos.layouts={photo: 0.5, halves: 0.5}",
    "batch=4",
    "warmup=2",
    "log_every=1",
    "save_every=2",
    "validate_every=100",
    "threads=1",
]
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def arguments(bank_case, tmp_path_factory):
    bank = bank_case.make_bank(tmp_path_factory.mktemp("words"))
    return [f"compositions.bank={bank}", *SMALL]


@pytest.fixture(scope="module")
def trained(arguments, tmp_path_factory):
    """The output folder of forty steps."""
    out = tmp_path_factory.mktemp("trained")
    assert main([f"output={out}", *arguments, "steps=40"]) == 0
    return out


def test_attention_comes_to_lie_on_the_object(trained):
    rows = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    cover = [row["cover"] for row in rows if "cover" in row]
    assert sum(cover[-5:]) < 0.9 * sum(cover[:5])
    assert {"iou", "peak", "overlap", "auc"} < rows[-1].keys()
    assert (trained / "maps.png").exists()


def test_only_the_heads_the_norms_and_the_text_layers_change(trained):
    before, after = (
        load_file(folder / WEIGHTS) for folder in (nano_folder("nano-photos"), trained / "base")
    )
    first = "transformer_blocks.0.attn."
    changed = {name for name in before if not torch.equal(before[name].half(), after[name])}
    assert changed == {
        *(
            f"{first}{layer}.{kind}"
            for layer in ("to_q", "to_k", "add_k_proj")
            for kind in ("weight", "bias")
        ),
        f"{first}norm_q.weight",
        f"{first}norm_added_k.weight",
        *(
            f"transformer_blocks.0.{norm}.linear.{kind}"
            for norm in ("norm1", "norm1_context")
            for kind in ("weight", "bias")
        ),
        "context_embedder.weight",
        "context_embedder.bias",
    }
    rows = (before[f"{first}to_q.weight"].half() != after[f"{first}to_q.weight"]).any(1)
    untouched = torch.arange(32, 64), torch.arange(96, 128)  # heads 1 and 3
    assert not rows[torch.cat(untouched)].any()
    assert rows[:32].any()


def test_the_base_that_it_writes_edits(trained):
    base = load_base(str(trained / "base"))
    states, _ = base.encode_prompts(["make the dog in neon style, keep other area unchanged"])
    assert states.isfinite().all()
    assert not (trained / "base" / "experts").exists()
    assert not any("_name_or_path" in f.read_text() for f in trained.glob("base/*/config.json"))


def test_another_image_encoder_takes_the_place_of_the_bases(arguments, tmp_path, capsys):
    encoder = copy.deepcopy(load_base("nano-photos").vae.image_encoder)
    encoder.vocabulary = ("cup", "stone")
    with torch.no_grad():
        encoder.bias.add_(1)
    encoder.sizes["zoom"] = 3
    file = tmp_path / "encoder.safetensors"
    save_image_encoder(encoder, file)

    assert main([f"output={tmp_path}", *arguments, f"image_encoder={file}", "steps=1"]) == 0
    told = "image_encoder: sees 3 times the base's size, the base's own saw 2"
    assert told in capsys.readouterr().out
    written = load_base(str(tmp_path / "base")).vae.image_encoder
    assert written.vocabulary == ("cup", "stone")
    assert torch.equal(written.bias, encoder.bias)
    assert main([f"output={tmp_path}", *arguments, "steps=1"]) == 2
    assert f"had image_encoder={file}, this one has None" in capsys.readouterr().err


def test_an_image_encoder_that_the_base_cannot_read_is_refused(arguments, tmp_path, capsys):
    file = tmp_path / "encoder.safetensors"
    given = [f"output={tmp_path}", *arguments, f"image_encoder={file}"]
    assert main(given) == 2
    assert f"image_encoder={file}: no such file" in capsys.readouterr().err
    save_image_encoder(ImageEncoder(16, 8, 128), file)
    assert main(given) == 2
    assert f"image_encoder={file}: its sizes are" in capsys.readouterr().err
    encoder = copy.deepcopy(load_base("nano-photos").vae.image_encoder)
    encoder.deviation.mul_(2)
    save_image_encoder(encoder, file)
    assert main(given) == 2
    assert "from_base=true" in capsys.readouterr().err
    assert main([*given, "base=nano"]) == 2
    assert "base=nano: needs an image encoder" in capsys.readouterr().err


def test_images_are_encoded_anew_for_another_image_encoder(arguments, tmp_path):
    base = load_base("nano-photos")
    cfg = load_config(None, arguments, WordAttentionConfig).compositions
    before = load_images(cfg, 0, base, tmp_path)["train"].latents
    with torch.no_grad():
        base.vae.image_encoder.mean.add_(1)
    assert not torch.equal(load_images(cfg, 0, base, tmp_path)["train"].latents, before)


def test_a_stopped_run_gives_the_same_base(arguments, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([f"output={whole}", *arguments, "steps=4"]) == 0
    real, calls = training._losses, []

    def cut_off(*given):
        calls.append(given)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(training, "_losses", cut_off)
    assert main([f"output={parts}", *arguments, "steps=4"]) == 130
    monkeypatch.setattr(training, "_losses", real)
    assert main([f"output={parts}", *arguments, "steps=4"]) == 0
    assert (parts / "base" / WEIGHTS).read_bytes() == (whole / "base" / WEIGHTS).read_bytes()


def test_text_states_stay_where_they_were_without_training():
    heads = WordHeads(load_base("nano-photos"), (0,), text_share=1.0)
    ids = heads.base.tokenizer_2(["make the dog red"], return_tensors="pt").input_ids
    assert heads.moved(ids).item() < 1e-9


def test_a_base_without_an_image_encoder_is_refused():
    with pytest.raises(UserError, match="image encoder"):
        WordHeads(load_base("nano"), (0,), text_share=1.0)


def test_a_head_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="heads are 0 to 5"):
        WordHeads(load_base("nano-photos"), (0, 7), text_share=1.0)


@pytest.fixture(scope="module")
def started(bank_case, tmp_path_factory):
    """Heads of nano-photos before training, with images."""
    bank = bank_case.make_bank(tmp_path_factory.mktemp("started"))
    base = load_base("nano-photos")
    cfg = CompositionsConfig(bank=str(bank), side=32, detail=1, count=24, held_out=4)
    images = load_images(cfg, 0, base, tmp_path_factory.mktemp("images"))["train"]
    words = Words(base, images, 0.55)
    heads = WordHeads(base, (0, 2, 4, 5), text_share=0.3)
    start_heads(heads, images, words.all, seed=0, sharpness=0.6)
    return heads, images, words


def test_the_first_maps_follow_the_image_encoders_score(started):
    heads, images, _ = started
    encoder = heads.base.vae.image_encoder
    chosen = images.shown()[:8]
    asked = [images.words[image][0] for image in chosen]
    batch = named(images, chosen, asked, nowhere(images, 8), ["neon"] * 8)
    with torch.no_grad():
        maps = heads.maps(batch, torch.zeros_like(batch.context)).log().flatten(1)
        raw = encoder.raw(context_features(heads.base, batch.context))
        scores = encoder.scores(raw, heads.base.word_vectors(asked)[:, None])[:, 0].flatten(1)
    both = torch.stack([maps - maps.mean(1, True), scores - scores.mean(1, True)])
    cosine = torch.cosine_similarity(both[0], both[1])
    assert cosine.mean() > 0.5


def test_the_modulation_of_the_first_attention_ignores_the_text(started):
    heads, _, words = started
    transformer = heads.base.transformer
    linear = transformer.transformer_blocks[0].norm1.linear
    asked = [f"make the {word} in neon style, keep other area unchanged" for word in words.all[:2]]
    ids = token_ids(heads.base, asked)[0]
    pooled = heads.base.text_encoder(ids).pooler_output
    with torch.no_grad():
        embedded = transformer.time_text_embed(torch.full((2,), 1000.0), pooled)
        shift, scale, gate = linear(torch.nn.functional.silu(embedded)).chunk(6, 1)[:3]
    for found in (shift, scale):
        assert (found[0] - found[1]).abs().mean() < 0.3 * (gate[0] - gate[1]).abs().mean()


def test_balanced_coordinates_keep_inner_products():
    generator = torch.Generator().manual_seed(0)
    features, words = (torch.randn(400, 6, generator=generator) for _ in range(2))
    words[:, 0] *= 5
    asked = torch.ones(400, dtype=torch.bool)
    sides = Sides(features, features, features[:, 0], words, words, asked)
    shown, wanted = balanced(sides)
    torch.testing.assert_close((shown * wanted).sum(1), (features * words).sum(1))
    variances = torch.cov(shown.T).diagonal()
    assert (variances.diff() <= 1e-4).all()


def test_calm_channels_are_those_that_turn_least_across_an_image():
    transformer = load_base("nano-photos").transformer
    calm, fast = channels(transformer, 16)
    assert len(calm) == 22
    assert fast in {8, 9, 20, 21}  # the first pairs of the rows' and columns' channels
    assert fast not in calm
