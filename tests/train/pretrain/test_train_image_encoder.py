"""Training of a base's image_encoder: what they learn, resume, what is kept, and mistakes."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from regionroute.config.io import load_config
from regionroute.errors import UserError
from train.pretrain import train_image_encoder as vision
from train.pretrain.image_encoder.config import ImageEncoderConfig
from train.pretrain.image_encoder.file import load_image_encoder, save_image_encoder
from train.pretrain.image_encoder.views import Views, draw, load_views
from train.pretrain.train_image_encoder import (
    NormalisedConv,
    explained,
    freeze,
    learning_rate,
    main,
    new_network,
)

SMALL = [
    "views.side=32",
    "views.crops=2",
    "network.widths=[8, 12, 18, 24]",
    "network.depths=[1, 1, 1, 1]",
    "network.semantic_channels=2",
    "teacher.blocks=[2, 4]",
    "batch=4",
    "warmup=2",
    "log_every=2",
    "save_every=2",
    "validate_every=4",
    "threads=1",
]


@pytest.fixture(scope="module")
def arguments(bank_case, tmp_path_factory, lite_weights):
    folder = tmp_path_factory.mktemp("vision")
    save_file(lite_weights(), folder / "lite.safetensors")
    bank = bank_case.make_bank(folder)
    return [f"views.bank={bank}", f"teacher.weights={folder / 'lite.safetensors'}", *SMALL]


def config(**changes):
    network = {"widths": (8, 12, 18, 24), "depths": (1, 1, 1, 1), "semantic_channels": 2}
    return ImageEncoderConfig(network=network, **changes)


def test_it_learns_what_the_teacher_sees(arguments, tmp_path, capsys):
    assert main([f"output={tmp_path}", *arguments, "steps=60", "lr=1e-2", "average=0.9"]) == 0

    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    told = [row["explained"] for row in rows if "explained" in row]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert told[-1] > 0.1
    assert told[-1] > told[0]
    assert losses[-1] < losses[0]
    assert "explained" in capsys.readouterr().out
    assert (tmp_path / "seen.png").exists()
    network = load_image_encoder(tmp_path / "image_encoder.safetensors")
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 8, 4, 4)
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_a_stopped_run_gives_the_same_network(arguments, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([f"output={whole}", *arguments, "steps=4"]) == 0
    real, calls = vision.draw, []

    def cut_off(*given):
        calls.append(given)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(vision, "draw", cut_off)
    assert main([f"output={parts}", *arguments, "steps=4"]) == 130
    assert not (parts / "image_encoder.safetensors").exists()
    assert main([f"output={parts}", *arguments, "steps=4"]) == 0
    assert len(calls) == 4 + 2  # the second step was saved
    assert (whole / "log.jsonl").read_text() == (parts / "log.jsonl").read_text()
    files = [load_file(folder / "image_encoder.safetensors") for folder in (whole, parts)]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])


def test_folded_and_rounded_it_tells_nearly_the_same():
    cfg = config()
    network = new_network(cfg)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.2, 0.2)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.2, 0.2)
    network.eval()
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1

    exact, rounded = network(pictures), freeze(network)(pictures)
    assert (rounded - exact).norm() < 0.05 * exact.norm()
    layer = NormalisedConv(3, 5, 3, 2).eval()
    nn.init.uniform_(layer.norm.running_mean)
    weight, bias = layer.folded()
    x = torch.rand(1, 3, 8, 8)
    assert torch.allclose(layer(x), F.conv2d(x, weight, bias, 2, 1), atol=1e-5)


def test_a_network_that_tells_the_mean_explains_nothing_and_the_truth_all():
    features = torch.randn(6, 8, 4, 4)
    views = Views(torch.zeros(6, 3, 32, 32, dtype=torch.uint8), features)
    mean = features.mean((0, 2, 3))[:, None, None].expand(8, 4, 4)
    told = explained(lambda pictures: mean.expand(len(pictures), 8, 4, 4), views, views)
    assert told == pytest.approx({"explained": 0, "explained_first": 0}, abs=1e-5)
    told = explained(lambda pictures: features[: len(pictures)], views, views)
    assert told == {"explained": 1, "explained_first": 1}


def test_squares_are_cut_once_and_again_only_for_other_settings(arguments, tmp_path):
    cfg = load_config(None, arguments, ImageEncoderConfig)
    training, held_out = load_views(cfg, tmp_path)
    assert len(training.pictures) == 3 * 6  # whole, and two squares each
    assert len(held_out.pictures) == 2
    assert training.features.shape == (18, 8, 4, 4)
    first = (tmp_path / "views.safetensors").stat().st_mtime_ns
    load_views(cfg, tmp_path)
    assert (tmp_path / "views.safetensors").stat().st_mtime_ns == first
    fewer = load_config(None, [*arguments, "views.crops=0"], ImageEncoderConfig)
    assert len(load_views(fewer, tmp_path)[0].pictures) == 6
    (tmp_path / "views.safetensors").write_bytes(b"cut")
    assert len(load_views(fewer, tmp_path)[0].pictures) == 6


def test_a_piece_of_another_square_brings_its_features_along():
    side = 8
    shade = torch.linspace(0, 1, 5)[:, None, None, None]
    pictures = (shade * 255).round().to(torch.uint8).expand(5, 3, 8 * side, 8 * side)
    views = Views(pictures, shade.expand(5, 1, side, side))
    generator = torch.Generator().manual_seed(3)
    plain, wanted, weights = draw(views, 8, 0.0, generator)
    assert plain.shape == (8, 3, 64, 64)
    assert all(len(row.unique()) == 1 for row in wanted)
    assert weights.eq(1).all()

    seen, wanted, weights = draw(views, 40, 1.0, generator)
    two = [row for row in range(40) if len(wanted[row].unique()) == 2]
    assert len(two) > 20
    for row in two:
        inside = wanted[row, 0] == wanted[row, 0].unique()[0]
        # One brightness in the picture where there is one feature.
        blocks = F.avg_pool2d(seen[row].mean(0)[None, None], 8)[0, 0]
        assert blocks[inside].std() < 1e-5
        assert blocks[~inside].std() < 1e-5 or (~inside).sum() == 1
        assert 0 < weights[row].mean() < 1


def test_the_rate_rises_and_falls():
    cfg = ImageEncoderConfig(steps=100, warmup=10, lr=1.0)
    rates = [learning_rate(step, cfg) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9]
    assert rates[-1] < 0.02


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        (["views.bank=nowhere"], "regionroute bank"),
        (["teacher.weights=nowhere"], "teacher.weights=nowhere"),
        (["network.semantic_channels=60"], "network.semantic_channels"),
        (["views.side=20"], "views.side"),
        (["steps=2", "lr=1e30", "clip=1e30"], "lower lr"),
    ],
)
def test_mistakes_are_one_sentence(arguments, tmp_path, capsys, settings, part):
    assert main([f"output={tmp_path}", *arguments, *settings]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert part in error


def test_a_checkpoint_of_other_sizes_is_refused(arguments, tmp_path, capsys):
    assert main([f"output={tmp_path}", *arguments, "steps=2"]) == 0
    assert main([f"output={tmp_path}", *arguments, "steps=2", "network.widths=[8,12,18,30]"]) == 2
    assert "checkpoint.pt: this checkpoint is damaged" in capsys.readouterr().err


def test_another_file_is_no_image_encoder(tmp_path):
    with pytest.raises(UserError, match=r"codec\.image_encoder=.*no such file"):
        load_image_encoder(tmp_path / "absent.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"not a network of train/pretrain/train_image_encoder\.py"):
        load_image_encoder(tmp_path / "cut.safetensors")
    save_file({"stem.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"not a network of train/pretrain/train_image_encoder\.py"):
        load_image_encoder(tmp_path / "other.safetensors")
    network = freeze(new_network(config()))
    save_image_encoder(network, tmp_path / "good.safetensors")
    assert load_image_encoder(tmp_path / "good.safetensors").sizes == network.sizes
