import pytest
import torch
from skimage.metrics import structural_similarity

from pseudo_labels.stylemamba.measures import directional_score, ssim


def test_ssim_is_that_of_scikit_image():
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(2, 3, 40, 33, generator=generator)
    b = (a + 0.2 * torch.randn(a.shape, generator=generator)).clamp(0, 1)
    for first, second, value in zip(a, b, ssim(a, b), strict=True):
        _, full = structural_similarity(
            *(x.permute(1, 2, 0).double().numpy() for x in (first, second)), channel_axis=2,
            data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True,
        )  # fmt: skip
        assert value.item() == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-5)


def test_equal_pictures_have_an_ssim_of_one():
    x = torch.rand(1, 3, 20, 20)
    assert ssim(x, x).item() == pytest.approx(1, abs=1e-6)


def test_ssim_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match="smaller than the window"):
        ssim(torch.zeros(1, 3, 10, 40), torch.zeros(1, 3, 10, 40))
    with pytest.raises(ValueError, match="images of"):
        ssim(torch.zeros(1, 3, 20, 20), torch.zeros(1, 3, 20, 21))


def test_directional_score_of_known_edits():
    source, direction = torch.zeros(4, 3), torch.tensor([0.0, 2.0, 0.0])
    edits = torch.tensor([[0.0, 0.1, 0.0], [0.0, -5.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(
        directional_score(source, source + edits, direction), torch.tensor([1.0, -1.0, 0.0, 0.0])
    )
