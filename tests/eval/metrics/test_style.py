import itertools

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.models.vgg import cfgs, make_layers

from eval.encoders import trust
from eval.encoders.vision import VggEncoder, load_vgg
from eval.metrics import style
from regionroute.errors import UserError


@pytest.fixture(scope="module")
def network(assets):
    """The real VGG16."""
    return load_vgg(str(assets / "weights" / "lpips"))


@pytest.fixture(scope="module")
def pictures():
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def test_gram_equals_numpy():
    features = torch.randn(2, 5, 4, 6)
    flat = features.double().numpy().reshape(2, 5, 24)
    expected = np.einsum("vcx,vdx->vcd", flat, flat) / (5 * 24)
    np.testing.assert_allclose(style.gram_matrices(features), expected, rtol=1e-5, atol=1e-7)
    # Where things are does not matter, only what they are made of.
    torch.testing.assert_close(
        style.gram_matrices(features.roll((1, 2), (2, 3))), style.gram_matrices(features)
    )


def test_gram_distance_is_summed_over_layers():
    a, b = [torch.rand(2, n, n) for n in (3, 4)], [torch.rand(5, n, n) for n in (3, 4)]
    found = style.gram_distance(a, b)
    assert found.shape == (2, 5)
    expected = sum(((x[1] - y[3]) ** 2).mean() for x, y in zip(a, b, strict=True)) * 1e4
    torch.testing.assert_close(found[1, 3], expected)
    assert (style.gram_distance(a, a).diagonal() == 0).all()


def test_style_match_is_the_best_assignment():
    rng = torch.Generator().manual_seed(0)
    unit = torch.nn.functional.normalize
    output = unit(torch.randn(4, 6, generator=rng), dim=1)
    reference = unit(torch.randn(6, 6, generator=rng), dim=1)
    cosine = (output @ reference.T).double().numpy()
    best = max(
        np.mean([cosine[row, column] for row, column in enumerate(columns)])
        for columns in itertools.permutations(range(6), 4)
    )
    assert style.style_match(output, reference) == pytest.approx(best, abs=1e-6)
    assert style.style_match(output, output) == pytest.approx(1, abs=1e-6)
    shuffled = output[torch.tensor([2, 0, 3, 1])]
    assert style.style_match(shuffled, output) == pytest.approx(1, abs=1e-6)


def test_layers_are_those_of_torchvision(network, assets, pictures):
    reference = make_layers(cfgs["D"]).eval()
    file = load_file(assets / "weights" / "lpips" / "vgg16_features.safetensors")
    reference.load_state_dict({k.removeprefix("features."): v for k, v in file.items()})
    for layer in reference:
        if isinstance(layer, torch.nn.ReLU):
            layer.inplace = False
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (pictures - mean[:, None, None]) / std[:, None, None]
    places = {"relu1_1": 2, "conv4_2": 20, "relu4_1": 19, "conv5_2": 27, "relu5_1": 26}
    with torch.no_grad():
        found = network(pictures, tuple(places))
        for name, count in places.items():
            torch.testing.assert_close(found[name], reference[:count](x), rtol=1e-5, atol=1e-5)


def test_equal_pictures_are_equal_to_all_three(network, pictures):
    one, again = (style.style_features(pictures, network) for _ in range(2))
    other = style.style_features(1 - pictures, network)
    assert (style.gram_distance(one.grams, again.grams).diagonal() == 0).all()
    assert (style.vgg_content(one.content, again.content) == 0).all()
    assert (style.vgg_content(one.content, other.content) > 0).all()
    assert style.style_match(one.blocks[0], again.blocks[0]) == pytest.approx(1, abs=1e-5)
    assert one.blocks.shape == (2, 64, 512)
    assert network.identity()["encoder"] == "VGG16"


def test_the_number_of_views_at_once_does_not_matter(network, monkeypatch):
    pictures = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    whole = style.style_features(pictures, network)
    monkeypatch.setattr(style, "AT_ONCE", 2)
    parts = style.style_features(pictures, network)
    for a, b in zip(whole.grams, parts.grams, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(whole.blocks, parts.blocks, rtol=1e-4, atol=1e-5)


def test_vgg19_is_told_by_its_depth():
    features = {f"features.{k}": v for k, v in make_layers(cfgs["E"]).state_dict().items()}
    network = VggEncoder(features)
    assert network.identity()["encoder"] == "VGG19"
    found = network(torch.rand(1, 3, 32, 32), ("conv5_2", "relu4_4"))
    assert found["relu4_4"].shape == (1, 512, 4, 4)


def test_other_weights_make_no_numbers(tmp_path, assets, monkeypatch):
    file = load_file(assets / "weights" / "lpips" / "vgg16_features.safetensors")
    random = {name: torch.randn_like(value) for name, value in file.items()}
    save_file(random, tmp_path / "vgg16.safetensors")
    with pytest.raises(UserError, match="not torchvision's vgg16 weights"):
        load_vgg(str(tmp_path / "vgg16.safetensors"))
    monkeypatch.setitem(trust.KNOWN_FEATURES, "vgg16", {trust.tensors_hash(random)})
    load_vgg(str(tmp_path))  # found in the folder, and known now
    save_file({"features.0.weight": torch.zeros(1)}, tmp_path / "vgg16.safetensors")
    with pytest.raises(UserError, match="no VGG16 or VGG19"):
        load_vgg(str(tmp_path))
    (tmp_path / "vgg16.safetensors").write_text("text")
    with pytest.raises(UserError, match="these are no weights"):
        load_vgg(str(tmp_path))
    with pytest.raises(UserError, match="no such file or folder"):
        load_vgg(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="in this folder"):
        load_vgg(str(tmp_path / "empty"))
