import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from eval.encoders.features import load_lpips
from eval.metrics.structure import lpips, ssim
from regionroute.data.images import read_image


@pytest.fixture
def pairs():
    rng = torch.Generator().manual_seed(0)
    sizes = ((40, 56), (11, 30), (33, 33))
    first = [torch.rand(3, *size, generator=rng) for size in sizes]
    return first, [
        (picture + 0.2 * torch.randn(picture.shape, generator=rng)).clamp(0, 1) for picture in first
    ]


def test_ssim_equals_scikit_image(pairs):
    expected = [
        structural_similarity(
            a.double().numpy(),
            b.double().numpy(),
            channel_axis=0,
            data_range=1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(*pairs, strict=True)
    ]
    np.testing.assert_allclose(ssim(*pairs), expected, atol=1e-5)


def test_ssim_of_equal_and_of_tiny_pictures(pairs):
    np.testing.assert_allclose(ssim(pairs[0], pairs[0]), 1, atol=1e-6)
    assert ssim([torch.rand(3, 10, 40)], [torch.rand(3, 10, 40)]).isnan().all()


def test_lpips_of_views_is_the_packages(assets):
    distance = load_lpips(assets / "weights" / "lpips" / "alexnet_features.safetensors")
    photo = read_image(assets / "photos" / "truck.jpg")
    first = [photo[:, :100, :130], photo[:, 200:280, 200:264], photo[:, :20, :20]]
    second = [first[0].flip(2), first[1], first[2].flip(1)]
    found = lpips(first, second, distance)
    expected = distance.net(first[0][None], second[0][None], normalize=True).item()
    assert found[0] == pytest.approx(expected, abs=1e-6)
    assert found[1] == 0
    assert found[2].isnan()  # below 32 pixels
