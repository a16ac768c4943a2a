import pytest
import torch
import torch.nn.functional as F

from regionroute.models.image_encoder import Bottleneck, EightBitConv, VisionNet


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 2), (1, 1)])
def test_eight_bits_keep_the_weights_to_half_a_step(kernel, stride):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 4, kernel, kernel, generator=generator)
    bias, x = torch.randn(6, generator=generator), torch.randn(1, 4, 8, 8, generator=generator)
    layer = EightBitConv(4, 6, kernel, stride)
    layer.set(weight, bias)

    error = (layer.weight * layer.scale - weight).abs()
    assert layer.weight.dtype == torch.int8
    assert (error <= layer.scale / 2 * 1.001).all()
    expected = F.conv2d(x, layer.weight * layer.scale, bias, stride, padding=kernel // 2)
    assert torch.allclose(layer(x), expected, atol=1e-5)
    assert layer(x).shape[-1] == 8 // stride


def random_net(**sizes):
    """A network of random weights that keep the size of what goes through."""
    generator = torch.Generator().manual_seed(0)
    network = VisionNet(**sizes)
    for layer in network.modules():
        if isinstance(layer, EightBitConv):
            shape = layer.weight.shape
            spread = (2 / layer.weight[0].numel()) ** 0.5
            layer.set(torch.randn(shape, generator=generator) * spread, layer.bias)
    return network.eval()


def test_a_feature_for_every_eight_pixels_of_any_picture():
    network = random_net(channels=12, widths=(6, 9, 12, 15), depths=(1, 2, 1, 1))

    assert sum(isinstance(module, Bottleneck) for module in network.modules()) == 5
    for height, width in ((64, 96), (40, 8)):
        features = network(torch.rand(2, 3, height, width) * 2 - 1)
        assert features.shape == (2, 12, height // 8, width // 8)
        assert features.std() > 0.01


def test_what_is_seen_far_off_counts():
    """The lower path reaches further than the eight pixels of a feature."""
    network = random_net(channels=4, widths=(6, 9, 12, 15), depths=(1, 1, 1, 1))
    picture = torch.zeros(1, 3, 64, 64)
    other = picture.clone()
    other[..., 48:] = 1
    changed = (network(picture) - network(other)).abs().amax((0, 1, 2))

    assert (changed[2:] > 1e-4).all()


def test_sizes_make_the_same_network_again():
    network = VisionNet(8, (4, 4, 6, 6), (1, 1, 1, 1))
    again = VisionNet(**network.sizes)
    again.load_state_dict(network.state_dict())
    with pytest.raises(ValueError, match="3 widths and 4 depths"):
        VisionNet(8, (4, 4, 6), (1, 1, 1, 1))
