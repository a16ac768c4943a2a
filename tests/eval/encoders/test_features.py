import math
import warnings

import lpips
import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.models import alexnet

from eval.encoders import trust
from eval.encoders.features import (
    HUB_FILE,
    LPIPS_VARIABLE,
    PerceptualDistance,
    find_lpips_weights,
    load_clip,
    load_lpips,
    weights_hash,
)
from eval.metrics.lpips import lpips_bg
from regionroute.data.images import read_image
from regionroute.errors import UserError


@pytest.fixture(scope="module")
def distance(assets):
    """LPIPS with the real AlexNet weights."""
    return load_lpips(find_lpips_weights(str(assets / "weights" / "lpips")))


@pytest.fixture(scope="module")
def package(assets):
    """The lpips package filled by hand, in its own layout, with the same weights."""
    features = load_file(assets / "weights" / "lpips" / "alexnet_features.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package's old way to call torchvision
        net = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    layers = {"slice1.0": 0, "slice2.3": 3, "slice3.6": 6, "slice4.8": 8, "slice5.10": 10}
    for name, index in layers.items():
        for kind in ("weight", "bias"):
            net.net.get_parameter(f"{name}.{kind}").data = features[f"features.{index}.{kind}"]
    return net.eval()


@pytest.fixture(scope="module")
def photos(assets):
    """Two crops of real photos [2,3,160,192]."""
    names = ("truck.jpg", "groceries.jpg")
    return torch.stack([read_image(assets / "photos" / n)[:, 200:360, 300:492] for n in names])


@torch.no_grad()
def test_whole_pictures_equal_the_lpips_package(distance, package, photos):
    noisy = (photos + 0.1 * torch.randn(photos.shape, generator=torch.manual_seed(0))).clamp(0, 1)
    for other in (noisy, photos.flip(0), photos.roll(3, 3)):
        expected = package(photos * 2 - 1, other * 2 - 1).flatten()
        torch.testing.assert_close(distance.distance(photos, other), expected, rtol=0, atol=1e-6)
        assert (expected > 0.01).all()


@torch.no_grad()
def test_background_is_the_mean_of_the_packages_spatial_map(distance, package, photos):
    mask = torch.zeros(2, 1, 160, 192)
    mask[:, :, 40:100, 50:120] = 1
    edited = photos.roll(5, 2)
    pasted = edited.clone()
    pasted[:, :, 40:100, 50:120] = photos[:, :, 40:100, 50:120]
    package.spatial = True
    spatial = package(pasted * 2 - 1, photos * 2 - 1)
    package.spatial = False
    expected = torch.stack(
        [values[0][m[0] == 0].mean() for values, m in zip(spatial, mask, strict=True)]
    )
    torch.testing.assert_close(
        lpips_bg(edited, photos, mask, distance), expected, rtol=1e-5, atol=0
    )


def test_no_change_outside_the_mask_is_exactly_zero(distance, photos):
    mask = torch.zeros(2, 1, 160, 192)
    mask[:, :, 40:100, 50:120] = 1
    assert (lpips_bg(photos, photos, mask, distance) == 0).all()
    assert (distance.spatial_map(photos, photos) == 0).all()  # with the network as well
    mixed = lpips_bg(torch.stack([photos[0], 1 - photos[1]]), photos, mask, distance)
    assert mixed[0] == 0
    assert mixed[1] > 0.1
    assert (lpips_bg(torch.where(mask > 0, 1 - photos, photos), photos, mask, distance) == 0).all()
    assert lpips_bg(1 - photos, photos, torch.ones_like(mask), distance).isnan().all()


def test_the_batch_does_not_matter_for_lpips(distance, photos):
    mask = torch.zeros(2, 1, 160, 192)
    mask[:, :, 40:100, 50:120] = 1
    whole = lpips_bg(1 - photos, photos, mask, distance)
    parts = [lpips_bg(1 - photos[i : i + 1], photos[i : i + 1], mask[:1], distance) for i in (0, 1)]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-5, atol=1e-6)


def test_too_small_pictures_are_nan(distance):
    small = torch.rand(1, 3, 31, 40)
    assert math.isnan(lpips_bg(small, 1 - small, torch.zeros(1, 1, 31, 40), distance))
    assert lpips_bg(small, small, torch.zeros(1, 1, 31, 40), distance) == 0
    enough = torch.rand(1, 3, 32, 32)
    assert lpips_bg(enough, 1 - enough, torch.zeros(1, 1, 32, 32), distance) > 0


def test_weights_are_found_where_they_may_be(tmp_path, monkeypatch):
    monkeypatch.delenv(LPIPS_VARIABLE, raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    assert find_lpips_weights(None) is None
    cached = tmp_path / "hub" / "checkpoints" / HUB_FILE
    cached.parent.mkdir(parents=True)
    cached.touch()
    assert find_lpips_weights(None) == cached
    (tmp_path / "mine_alexnet.pth").touch()
    monkeypatch.setenv(LPIPS_VARIABLE, str(tmp_path))
    assert find_lpips_weights(None) == tmp_path / "mine_alexnet.pth"
    assert find_lpips_weights(str(cached)) == cached
    with pytest.raises(UserError, match=r"--lpips-weights .*no such file"):
        find_lpips_weights(str(tmp_path / "nowhere"))
    monkeypatch.setenv(LPIPS_VARIABLE, str(tmp_path / "hub"))
    with pytest.raises(UserError, match=f"{LPIPS_VARIABLE} .*in this folder"):
        find_lpips_weights(None)


def test_torchvisions_own_file_loads_as_well(tmp_path, monkeypatch):
    torch.manual_seed(0)
    state = {k: v for k, v in alexnet(weights=None).state_dict().items() if "features" in k}
    torch.save(state, tmp_path / "alexnet.pth")
    save_file(state, tmp_path / "alexnet.safetensors")
    with pytest.raises(UserError, match="not torchvision's alexnet weights"):  # random ones
        load_lpips(tmp_path / "alexnet.pth")
    monkeypatch.setitem(trust.KNOWN_FEATURES, "alexnet", {trust.tensors_hash(state)})
    hashes = {
        weights_hash(load_lpips(tmp_path / f"alexnet.{kind}")) for kind in ("pth", "safetensors")
    }
    assert len(hashes) == 1
    state["features.0.bias"] = state["features.0.bias"] + 1
    assert weights_hash(PerceptualDistance(state)) not in hashes


def test_other_files_are_refused_and_nothing_stays_random(tmp_path):
    save_file({"features.0.weight": torch.zeros(64, 3, 11, 11)}, tmp_path / "part.safetensors")
    save_file({"features.0.weight": torch.zeros(1)}, tmp_path / "shape.safetensors")
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "text.safetensors").write_text("no weights")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in (
        "part.safetensors",
        "shape.safetensors",
        "text.pth",
        "text.safetensors",
        "list.pth",
    ):
        with pytest.raises(UserError, match="not torchvision's AlexNet weights"):
            load_lpips(tmp_path / name)


def test_clip_embeds_like_the_model_itself(clip_folder):
    encoder = load_clip(str(clip_folder))
    texts = ["pixel-art style", "line-art style"]
    crops = [torch.rand(3, 40, 60), torch.rand(3, 32, 32)]
    images, words = encoder.encode_image(crops), encoder.encode_text(texts)
    assert images.shape == words.shape == (2, 8)
    torch.testing.assert_close(images.norm(dim=1), torch.ones(2))
    # Alone, an image and a text give the same vectors as together.
    torch.testing.assert_close(encoder.encode_image(crops[1:]), images[1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoder.encode_text(texts[1:]), words[1:], rtol=1e-4, atol=1e-5)
    # The model's own forward is the reference for what an embedding is.
    tokens = encoder.tokenizer(texts, padding="max_length", max_length=20, return_tensors="pt")
    pixels = torch.rand(2, 3, 32, 32)
    output = encoder.model(pixel_values=pixels, **tokens)
    torch.testing.assert_close(words, output.text_embeds, rtol=1e-4, atol=1e-5)
    assert encoder.identity()["encoder"] == clip_folder.name


def test_clip_that_cannot_be_loaded_is_one_sentence(clip_folder, tmp_path):
    with pytest.raises(UserError, match="cannot be loaded"):
        load_clip(str(tmp_path))
    state = load_file(clip_folder / "model.safetensors")
    for file in clip_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state.pop("visual_projection.weight")
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lack visual_projection"):
        load_clip(str(tmp_path))
