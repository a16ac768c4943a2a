import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torchmetrics.image.fid import FrechetInceptionDistance

from eval.encoders.extras import FrechetDistance
from eval.sets import FeatureStore, artfid, score_sets
from eval.style_images import StyleImages
from regionroute.data.images import write_image
from regionroute.errors import UserError
from regionroute.files import read_jsonl

# FID, LPIPS and ArtFID of the five columns that StyleGallery's paper prints.
PUBLISHED = {
    "StyTR-2": (17.623, 0.3856, 25.804),
    "StyleID": (18.987, 0.4496, 28.973),
    "AD": (17.677, 0.4032, 26.207),
    "StyleShot": (20.638, 0.6615, 35.952),
    "StyleGallery": (16.889, 0.3716, 24.536),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_artfid_gives_the_published_columns(name):
    fid, lpips, expected = PUBLISHED[name]
    # The inputs are rounded: to half a unit of their last digits.
    slack = (1 + fid) * 5e-5 + (1 + lpips) * 5e-4 + 5e-4
    assert artfid(lpips, fid) == pytest.approx(expected, abs=slack)
    assert artfid(0, 0) == 1


def closed_form(a, b):
    """Fréchet distance of two Gaussians fitted to [N,D] each, by scipy."""
    means = a.mean(0) - b.mean(0)
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    return means @ means + np.trace(first + second - 2 * sqrtm(first @ second).real)


def test_fid_equals_the_closed_form_and_torchmetrics():
    rng = torch.Generator().manual_seed(0)
    a = torch.randn(60, 8, generator=rng) * torch.arange(1, 9)
    b = torch.randn(45, 8, generator=rng) + 0.5
    ours = FrechetDistance(8)
    for part in a.split(17):
        ours.update(part, reference=True)
    for part in b.split(11):
        ours.update(part, reference=False)
    reference = FrechetInceptionDistance(feature=Columns(8))
    reference.update(a, real=True)
    reference.update(b, real=False)
    assert ours.compute() == pytest.approx(reference.compute().item(), rel=1e-5)
    assert ours.compute() == pytest.approx(closed_form(a.numpy(), b.numpy()), rel=1e-5)
    same = FrechetDistance(8)
    same.update(a, reference=True)
    same.update(a, reference=False)
    assert same.compute() == pytest.approx(0, abs=1e-6)


class Columns(torch.nn.Module):
    """Hands features through, for torchmetrics' own class."""

    def __init__(self, width):
        super().__init__()
        self.num_features = width

    def forward(self, features):
        return features


def test_one_picture_has_no_distribution():
    distance = FrechetDistance(3)
    distance.update(torch.rand(5, 3), reference=True)
    assert distance.compute() is None
    distance.update(torch.rand(1, 3), reference=False)
    assert distance.compute() is None


def test_features_outlive_a_killed_run(tmp_path):
    store = FeatureStore(tmp_path, "net", 4)
    vectors = torch.rand(3, 4)
    for number, vector in enumerate(vectors):
        store.add(f"k{number}", vector)
    with (tmp_path / "net.f32").open("ab") as file:
        file.write(b"half a vec")
    with (tmp_path / "net.keys").open("a") as file:
        file.write("k3\nk4")  # one without its vector, one cut off
    again = FeatureStore(tmp_path, "net", 4)
    assert "k2" in again
    assert "k3" not in again
    again.add("k3", torch.ones(4))
    (read,) = again.read(["k3", "k1", "k1"])
    torch.testing.assert_close(read, torch.stack([vectors[1], vectors[1], torch.ones(4)]))


class Colours:
    """Mean colours as features, and how often it was asked."""

    def __init__(self):
        self.asked = 0

    def encode_image(self, images):
        self.asked += len(images)
        return torch.stack([torch.cat([i.mean((1, 2)), i.std((1, 2))]) for i in images])

    def identity(self):
        return {"encoder": "colours", "weights": "none"}


@pytest.fixture
def styles(tmp_path):
    """Two images of pixel-art, one of line-art."""
    folder = tmp_path / "styles"
    rng = torch.Generator().manual_seed(0)
    for name in ("PixelArt/a.png", "PixelArt/b.png", "Line Art.png"):
        write_image(folder / name, torch.rand(3, 20, 30, generator=rng))
    (folder / "README.md").write_text("not an image")
    return folder


def test_style_pictures_go_by_letters_alone(styles, tmp_path):
    found = StyleImages(styles)
    assert [file.name for file in found.of("pixel-art")] == ["a.png", "b.png"]
    assert len(found.pictures("line_art")) == 1
    assert found.missing(["pixel-art", "cubism", "cubism"]) == ["cubism"]
    assert found.made("x", "cubism", len) is None
    before = found.identity()
    write_image(styles / "Line Art.png", torch.zeros(3, 900, 600))
    changed = StyleImages(styles)
    assert changed.identity() != before
    assert changed.pictures("line-art")[0].shape == (3, 512, 341)
    (tmp_path / "none").mkdir()
    for place, told in ((tmp_path / "none", "no image"), (tmp_path / "no", "no such folder")):
        with pytest.raises(UserError, match=told):
            StyleImages(place)


@pytest.mark.parametrize("scope", ["object", "image"])
def test_methods_against_the_style_pictures(tiny_manifest, edits, styles, tmp_path, scope):
    from eval import rses

    out = tmp_path / "scores"
    arguments = ["--manifest", tiny_manifest, "--split", "all", "--edits", edits["good"]]
    assert rses.main([str(a) for a in [*arguments, "--out", out]]) == 0
    rows = read_jsonl(out / "samples.jsonl")
    for row in rows:
        if row["metrics"]:
            row["metrics"]["lpips"] = 0.5
    encoder = Colours()
    found = score_sets(rows, out, encoder, StyleImages(styles), scope, width=6)
    assert list(found) == ["floor", "good", "ceiling"]
    assert found["good"]["fid"]["n"] == 4
    assert found["good"]["fid"]["n_reference"] == 3
    # The edits are the targets, bit by bit.
    assert found["good"]["fid"]["value"] == pytest.approx(found["ceiling"]["fid"]["value"])
    value = found["floor"]["fid"]["value"]
    assert value != pytest.approx(found["ceiling"]["fid"]["value"], rel=1e-3)
    assert found["floor"]["artfid"]["value"] == pytest.approx(1.5 * (1 + value))
    asked = encoder.asked
    assert score_sets(rows, out, encoder, StyleImages(styles), scope, width=6) == found
    assert encoder.asked == asked  # all features were kept


def test_style_images_of_every_format_but_hidden_ones_count(tmp_path):
    (tmp_path / ".cache").mkdir()
    (tmp_path / "oil").mkdir()
    for name in ("oil/a.heic", "oil/._a.heic", "neon.avif", "._neon.avif", ".cache/neon.avif"):
        (tmp_path / name).touch()
    found = StyleImages(tmp_path).files
    assert sorted(file.name for files in found.values() for file in files) == [
        "a.heic",
        "neon.avif",
    ]
    with pytest.raises(UserError, match=r"neon\.avif: this is a file, give a folder"):
        StyleImages(tmp_path / "neon.avif")
