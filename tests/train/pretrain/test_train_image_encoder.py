"""Training of a base's image encoder: what it learns, resume, what is kept, and mistakes."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from regionroute.config.io import load_config
from regionroute.data.object_bank import ObjectBank
from regionroute.errors import UserError
from regionroute.models.loading import load_base
from train.pretrain import train_image_encoder as training
from train.pretrain.image_encoder.config import CompositionsConfig, ImageEncoderConfig
from train.pretrain.image_encoder.file import load_image_encoder, save_image_encoder
from train.pretrain.image_encoder.scores import localisation
from train.pretrain.image_encoder.views import Views, composer_of, composition, load_views
from train.pretrain.train_image_encoder import (
    Vocabulary,
    jittered,
    main,
    new_encoder,
)

SMALL = [
    "compositions.side=32",
    "compositions.detail=1",
    "compositions.count=24",
    "compositions.held_out=6",
    "compositions.photos.layouts={photo: 0.5, halves: 0.5}",
    "network.semantic_channels=4",
    "network.width=8",
    "batch=4",
    "warmup=2",
    "log_every=2",
    "save_every=2",
    "validate_every=100",
    "threads=1",
]


@pytest.fixture(scope="module")
def arguments(bank_case, tmp_path_factory):
    bank = bank_case.make_bank(tmp_path_factory.mktemp("encoder"))
    return [f"compositions.bank={bank}", *SMALL]


@pytest.fixture(scope="module")
def base():
    return load_base("nano-photos")


def one_image(masks, words):
    """Views of one image without pixels, masks [W,2,2] in {0,1}."""
    stored = (torch.as_tensor(masks) * 255).to(torch.uint8)
    return Views(torch.zeros(1, 3, 16, 16), (), [list(words)], stored, [0])


def test_it_learns_to_find_what_is_named(arguments, tmp_path, capsys):
    assert main([f"output={tmp_path}", *arguments, "steps=60", "lr=1e-2"]) == 0

    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    assert rows[-1]["peak"] > 0.5
    assert "iou" in capsys.readouterr().out
    assert (tmp_path / "maps.png").exists()
    network = load_image_encoder(tmp_path / "image_encoder.safetensors")
    features = network(torch.rand(1, 3, 32, 32) * 2 - 1, (32, 32))
    assert features.shape == (1, 16, 4, 4)
    assert network.vocabulary == ("cup", "dog")
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_a_bases_own_encoder_is_trained_further_at_its_scale(arguments, base, tmp_path, capsys):
    own = base.vae.image_encoder
    assert main([f"output={tmp_path}", *arguments, "from_base=true", "steps=1"]) == 0

    network = load_image_encoder(tmp_path / "image_encoder.safetensors")
    assert network.sizes == own.sizes
    assert {"cup", "dog", "airplane"} < set(network.vocabulary)
    assert torch.equal(network.mean, own.mean)
    assert torch.equal(network.deviation, own.deviation)
    change = network.out.weight - own.out.weight
    assert 0 < change.abs().max() < 0.01
    kept = (tmp_path / "image_encoder.safetensors").read_bytes()
    assert main([f"output={tmp_path}", *arguments, "steps=1"]) == 2
    assert "from_base=True" in capsys.readouterr().err
    assert (tmp_path / "image_encoder.safetensors").read_bytes() == kept


def test_a_stopped_run_gives_the_same_network(arguments, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([f"output={whole}", *arguments, "steps=4"]) == 0
    real, calls = training._loss, []

    def cut_off(*given):
        calls.append(given)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(training, "_loss", cut_off)
    assert main([f"output={parts}", *arguments, "steps=4"]) == 130
    assert not (parts / "image_encoder.safetensors").exists()
    assert main([f"output={parts}", *arguments, "steps=4"]) == 0
    assert len(calls) == 4 + 2  # the second step was saved
    assert (whole / "log.jsonl").read_text() == (parts / "log.jsonl").read_text()
    files = [load_file(folder / "image_encoder.safetensors") for folder in (whole, parts)]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])


def test_images_are_encoded_once_and_again_only_for_other_settings(arguments, base, tmp_path):
    cfg = load_config(None, arguments, ImageEncoderConfig)
    encoder = new_encoder(cfg, base)
    views = load_views(cfg.compositions, 0, encoder, tmp_path)
    assert len(views["train"].words) == 24
    assert len(views["test"].words) == 6
    near = views["train"].maps[0]
    assert near.shape == (24, 40, 4, 4)
    assert views["train"].mask(1).shape == (len(views["train"].words[1]), 4, 4)
    first = (tmp_path / "views.safetensors").stat().st_mtime_ns
    load_views(cfg.compositions, 0, encoder, tmp_path)
    assert (tmp_path / "views.safetensors").stat().st_mtime_ns == first
    fewer = load_config(None, [*arguments, "compositions.count=3"], ImageEncoderConfig)
    assert len(load_views(fewer.compositions, 0, encoder, tmp_path)["train"].words) == 3
    (tmp_path / "views.safetensors").write_bytes(b"cut")
    assert len(load_views(fewer.compositions, 0, encoder, tmp_path)["train"].words) == 3


def test_absent_words_are_far_from_those_present(base):
    words = ["cat", "kitten", "truck", "bowl"]
    views = {"train": one_image(torch.zeros(4, 2, 2), words)}
    vocabulary = Vocabulary(base, views)
    drawn = vocabulary.absent(["cat"], 40, 0.55, torch.Generator().manual_seed(0))
    present = vocabulary.of(["cat"])
    assert drawn.shape == (40, present.shape[1])
    assert (drawn @ present.T).max() < 0.55
    assert len({tuple(row[:3].tolist()) for row in drawn}) >= 2
    drawn = Vocabulary(base, views, surroundings={"truck"}).absent(
        ["cat"], 40, 0.55, torch.Generator().manual_seed(0)
    )
    assert (drawn @ vocabulary.of(["truck"]).T).max() < 0.99


def test_words_are_turned_by_at_most_the_length_given():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(200, 128, generator=generator), dim=-1)
    turned = jittered(vectors, 0.6, generator)
    torch.testing.assert_close(turned.norm(dim=1), torch.ones(200))
    cosines = (turned * vectors).sum(1)
    assert 0.8 <= float(cosines.min()) < 0.9  # 0.8: a right angle to a vector of length 0.6
    assert float(cosines.max()) > 0.97
    torch.testing.assert_close(jittered(vectors, 0.0, generator), vectors)


def test_words_of_a_kind_lie_close_and_phrases_average(base):
    cat, kitten, truck, both = base.word_vectors(["cat", "kitten", "truck", "cat truck"])
    assert cat.norm() == pytest.approx(1, abs=1e-5)
    assert cat @ kitten > cat @ truck + 0.1
    assert both @ cat > 0.5
    assert both @ truck > 0.5


def test_a_perfect_map_scores_one_and_a_blind_one_little():
    masks = torch.tensor([[[1.0, 0], [0, 0]], [[0, 1.0], [0, 0]]])
    views = one_image(masks, ["cat", "cup"])

    def perfect(views, image, words):
        empty = torch.zeros(2, 2)
        known = dict(zip(("cat", "cup"), masks, strict=True))
        return torch.stack([known.get(word, empty) for word in words]) * 20 - 10

    def blind(views, image, words):
        return torch.full((len(words), 2, 2), 10.0)

    assert localisation(views, ["cat", "cup", "dog"], perfect) == {
        "iou": 1, "peak": 1, "overlap": 0, "auc": 1,
    }  # fmt: skip
    found = localisation(views, ["cat", "cup", "dog"], blind)
    assert found["iou"] == pytest.approx(0.25)
    assert found["overlap"] == 1
    assert found["auc"] == 0.5


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        (["compositions.bank=nowhere"], "regionroute bank"),
        (["base=nowhere"], "nowhere"),
        (["base=nano", "from_base=true"], "nano has no image encoder"),
        (["compositions.side=40"], "compositions.side"),
        (["compositions.side=64"], "images of 64 px are to be composed"),
        (["compositions.detail=2"], "make a bank with --size 64"),
        (["steps=2", "lr=1e30", "clip=1e30"], "lower lr"),
    ],
)
def test_mistakes_are_one_sentence(arguments, tmp_path, capsys, settings, part):
    assert main([f"output={tmp_path}", *arguments, *settings]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert part in error


def test_a_bank_without_test_photos_is_refused_before_images_are_made(bank_case, tmp_path, capsys):
    bank = bank_case.make_bank(tmp_path, "--test-share", "0")
    capsys.readouterr()
    assert main([f"compositions.bank={bank}", *SMALL, f"output={tmp_path / 'run'}"]) == 2
    shown = capsys.readouterr().err
    assert "the split 'test' of this bank holds no photo" in shown
    assert "--test-share" in shown
    assert "train images" not in shown  # the progress bar


def test_images_are_composed_in_more_detail_than_the_base_sees(bank_case, tmp_path):
    bank = ObjectBank(bank_case.make_bank(tmp_path, "--size", "64"))
    sharp = CompositionsConfig(side=32, detail=2, blurred=0, other_colours=0)
    soft = sharp.model_copy(update={"blurred": 1})
    softer = 0
    for seed in range(12):
        image, objects = made(bank, sharp, seed)
        assert image.shape == (3, 64, 64)
        assert {tuple(mask.shape) for mask in objects.values()} == {(1, 4, 4)}
        other, same = made(bank, soft, seed)
        assert same.keys() == objects.keys()
        small = F.avg_pool2d(image, 8) - F.avg_pool2d(other, 8)
        assert small.abs().max() < 0.1
        softer += (other - other.roll(1, -1)).abs().sum() < (image - image.roll(1, -1)).abs().sum()
    assert softer >= 10


def made(bank, cfg, seed):
    generator = torch.Generator().manual_seed(seed)
    return composition(composer_of(bank, "train", cfg), generator, cfg)


def test_another_file_is_no_image_encoder(base, tmp_path):
    with pytest.raises(UserError, match=r"codec\.image_encoder=.*no such file"):
        load_image_encoder(tmp_path / "absent.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"not a network of train/pretrain/train_image_encoder\.py"):
        load_image_encoder(tmp_path / "cut.safetensors")
    save_file({"stem.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"not a network of train/pretrain/train_image_encoder\.py"):
        load_image_encoder(tmp_path / "other.safetensors")
    network = new_encoder(ImageEncoderConfig(), base)
    network.vocabulary = ("cat", "dog")
    save_image_encoder(network, tmp_path / "good.safetensors")
    again = load_image_encoder(tmp_path / "good.safetensors")
    assert again.sizes == network.sizes
    assert again.vocabulary == network.vocabulary
    # As files were before, and as others write them.
    about = {"sizes": json.dumps(network.sizes), "format": "pt"}
    save_file(network.state_dict(), tmp_path / "older.safetensors", metadata=about)
    assert load_image_encoder(tmp_path / "older.safetensors").vocabulary == ()
