"""EfficientNet-Lite0 as published: names, normalisations folded in, and what cannot be read."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from regionroute.errors import UserError
from train.pretrain.image_encoder.config import TeacherConfig
from train.pretrain.image_encoder.teacher import Teacher, load_efficientnet_lite


def test_a_folded_block_is_convolutions_and_normalisations(tmp_path, lite_weights):
    weights = lite_weights()
    save_file(weights, tmp_path / "lite.safetensors")
    network = load_efficientnet_lite(tmp_path / "lite.safetensors")
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1

    def normalised(x, norm):
        mean, variance, gain, bias = (
            weights[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, variance, gain, bias, eps=1e-3)

    stem = F.conv2d(F.pad(pictures, (0, 1, 0, 1)), weights["_conv_stem.weight"], stride=2)
    x = normalised(stem, "_bn0").clamp(0, 6)
    filtered = F.conv2d(x, weights["_blocks.0._depthwise_conv.weight"], padding=1, groups=32)
    x = normalised(filtered, "_blocks.0._bn1").clamp(0, 6)
    expected = normalised(F.conv2d(x, weights["_blocks.0._project_conv.weight"]), "_blocks.0._bn2")

    [found] = network(pictures, [0])
    assert torch.allclose(found, expected, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_features_are_the_strongest_directions(tmp_path, lite_weights):
    save_file(lite_weights(), tmp_path / "lite.safetensors")
    teacher = Teacher(TeacherConfig(weights=str(tmp_path / "lite.safetensors"), blocks=(2, 5)))
    pictures = torch.rand(6, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    teacher.fit(pictures, 5, 2.0)
    features = teacher(pictures)

    assert features.shape == (6, 5, 4, 6)
    flat = features.permute(0, 2, 3, 1).flatten(0, 2)
    assert flat.mean(0).abs().max() < 1e-3
    assert flat.square().mean().sqrt() == pytest.approx(2, rel=0.02)
    assert (flat.std(0).diff() <= 1e-4).all()
    crossed = torch.corrcoef(flat.T) - torch.eye(5)
    assert crossed.abs().max() < 1e-3
    with pytest.raises(UserError, match="200 directions of 104 features"):
        teacher.fit(pictures, 200, 2.0)


def test_what_cannot_be_read_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"teacher\.weights=.*no such file"):
        load_efficientnet_lite(tmp_path / "absent.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="not EfficientNet-Lite0"):
        load_efficientnet_lite(tmp_path / "cut.safetensors")
    save_file({"features.0.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="not EfficientNet-Lite0"):
        load_efficientnet_lite(tmp_path / "other.safetensors")
