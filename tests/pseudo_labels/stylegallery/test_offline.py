"""StyleGallery without downloads: regions and matches of nano-photos, a painter for the look."""

import json

import pytest
import torch

from pseudo_labels.stylegallery.offline import NOTE, OfflineGallery, find_clusters
from pseudo_labels.stylize.registry import STYLIZERS
from regionroute.cli.main import main as regionroute
from regionroute.data.images import read_image, write_image
from regionroute.errors import UserError


def halves(channels=16, seed=0):
    """Features of 16 x 16 cells: two halves, far apart, with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(2, channels, generator=generator)
    sides = torch.zeros(16, 16, dtype=torch.long)
    sides[:, 8:] = 1
    noise = 0.05 * torch.randn(channels, 16, 16, generator=generator)
    return centres[sides].permute(2, 0, 1) + noise, sides + 1


def test_two_blobs_are_two_regions():
    features, sides = halves()
    assert torch.equal(find_clusters(features), sides)


def test_a_region_of_the_user_is_a_region_of_its_own():
    features, _ = halves()
    user = torch.zeros(16, 16, dtype=torch.long)
    user[2:5, 2:5] = 1  # smaller than an island
    labels = find_clusters(features, user)
    mine = labels[user > 0].unique()
    assert len(mine) == 1
    assert not (labels[user == 0] == mine).any()
    assert int(labels.max()) == 3


def test_equal_features_are_one_region():
    assert torch.equal(find_clusters(torch.ones(4, 16, 16)), torch.ones(16, 16, dtype=torch.long))


@pytest.fixture(scope="module")
def photo(assets):
    return read_image(assets / "photos" / "dog_00.jpg")[:, ::4, ::4].contiguous()


@pytest.mark.slow
class TestOfflineGallery:
    @pytest.fixture(scope="class")
    def gallery(self, photo):
        other = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
        return OfflineGallery([("noise", other), ("self", photo)])

    def test_a_photo_among_the_references_is_matched_with_itself(self, gallery, photo):
        result = gallery.restyle(photo)
        assert [(m.reference, m.cluster) for m in result.matches] == [
            (1, m.region) for m in result.matches
        ]
        assert result.image.shape == photo.shape
        assert torch.isfinite(result.image).all()
        assert (result.image - photo).abs().mean() > 0.02

    def test_nothing_changes_outside_the_region(self, gallery, photo):
        region = torch.zeros(1, *photo.shape[-2:])
        region[:, 40:120, 60:140] = 1
        result = gallery.restyle(photo, region=region, only_region=True, chosen={None: (0, None)})
        assert torch.equal(result.image[:, region[0] == 0], photo[:, region[0] == 0])
        assert (result.image - photo)[:, region[0] == 1].abs().mean() > 0.02
        mine = next(m for m in result.matches if m.region in result.styled)
        assert (mine.reference, mine.manual) == (0, True)

    def test_the_command_needs_references_alone(self, tmp_path, photo, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        write_image("photo.png", photo)
        write_image("refs/a.png", photo.flip(0))
        assert regionroute(["gallery", "photo.png", "--references", "refs", "--out", "out.png",
                            "--page", "out.html"]) == 0  # fmt: skip
        assert NOTE in capsys.readouterr().err
        assert read_image("out.png").shape == photo.shape
        facts = json.loads((tmp_path / "out.json").read_text())
        assert facts["loss"] is None
        assert facts["matches"]
        assert "Losses over" not in (tmp_path / "out.html").read_text()


@pytest.mark.parametrize(
    "settings", [{"preset": "pairs"}, {"dino": "none"}, {"overrides": ["energy.steps=3"]}]
)
def test_settings_of_a_diffusion_model_are_refused(tmp_path, settings):
    write_image(tmp_path / "a.png", torch.rand(3, 32, 32))
    with pytest.raises(UserError, match=f"{next(iter(settings))} goes with a diffusion model"):
        STYLIZERS["gallery"].build(references=str(tmp_path), **settings)
