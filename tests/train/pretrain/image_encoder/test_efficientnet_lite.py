import pytest
import torch
import torch.nn.functional as F

from train.pretrain.image_encoder.efficientnet_lite import DEPTH, EfficientNetLite, SameConv


def test_features_have_the_published_sizes():
    network = EfficientNetLite()
    maps = network(torch.rand(2, 3, 64, 96), range(DEPTH))

    assert [network.channels(block) for block in (0, 2, 4, 7, 10, 14, 15)] == [
        16, 24, 40, 80, 112, 192, 320,
    ]  # fmt: skip
    assert [m.shape[1] for m in maps] == [network.channels(block) for block in range(DEPTH)]
    assert [64 // m.shape[2] for m in maps] == [2, 4, 4, 8, 8, *[16] * 6, *[32] * 5]
    assert all(m.shape[3] * 2 == m.shape[2] * 3 for m in maps)
    # 4,652,008 published, less head (412,160) and classifier (1,281,000).
    assert sum(values.numel() for values in network.state_dict().values()) == 2_939_120


def test_only_what_is_asked_for_is_given_and_the_rest_left_out():
    network = EfficientNetLite(3)
    assert len(network.blocks) == 3
    assert len(network(torch.rand(1, 3, 32, 32), (0, 2))) == 2
    with pytest.raises(ValueError, match="17 blocks"):
        EfficientNetLite(17)


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
