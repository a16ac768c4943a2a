import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.registration import phase_cross_correlation

from eval.metrics.drift import drift, phase_correlation


def scene(height=160, width=200, seed=0):
    """Structure at every scale that a photo has: [1,3,H,W] in [0,1]."""
    rng = torch.Generator().manual_seed(seed)
    picture = torch.zeros(1, 3, height, width)
    for size in (10, 25, 60, 120):
        noise = torch.randn(1, 3, size, size, generator=rng)
        picture += F.interpolate(noise, (height, width), mode="bicubic") / size**0.5
    return (0.5 + picture / picture.abs().max() / 2).clamp(0, 1)


def warped(picture, scale=1.0, down=0.0, right=0.0):
    """Enlarged about the centre, then moved by pixels."""
    height, width = picture.shape[2:]
    theta = torch.tensor(
        [[[1 / scale, 0, -2 * right / width / scale], [0, 1 / scale, -2 * down / height / scale]]]
    )
    grid = F.affine_grid(theta, picture.shape, align_corners=False)
    return F.grid_sample(picture, grid, mode="bicubic", padding_mode="reflection").clamp(0, 1)


@pytest.fixture
def mask():
    mask = torch.zeros(1, 1, 160, 200)
    mask[:, :, 60:110, 70:130] = 1
    return mask


def test_an_unchanged_background_has_not_moved(mask):
    source = scene()
    for edit in (source, torch.where(mask > 0, 1 - source, source)):
        shift, zoom = drift(edit, source, mask)
        assert shift == zoom == 0


@pytest.mark.parametrize("moved", [(0, 3), (-2, 5), (1, 0), (0.5, 1.25), (-6.25, 4)])
def test_a_shift_is_found_to_a_part_of_a_pixel(mask, moved):
    shift, zoom = drift(warped(scene(), 1, *moved), scene(), mask)
    assert shift == pytest.approx(np.hypot(*moved), abs=0.08)
    assert zoom < 0.001


@pytest.mark.parametrize("scale", [1.01, 1.03, 0.98])
def test_a_zoom_is_found_and_is_no_shift(mask, scale):
    shift, zoom = drift(warped(scene(), scale), scene(), mask)
    assert zoom == pytest.approx(abs(scale - 1), abs=0.002)
    assert shift < 0.15


def test_the_object_and_brightness_have_no_say(mask):
    source = scene()
    moved_object = torch.where(mask > 0, source.roll(9, 3), 0.2 + 0.6 * source)
    shift, zoom = drift(moved_object, source, mask)
    assert shift < 0.05
    assert zoom < 0.0005


def test_without_anything_to_compare_it_is_undefined(mask):
    flat = torch.full((1, 3, 160, 200), 0.5)
    noise = torch.rand(1, 3, 160, 200, generator=torch.Generator().manual_seed(1))
    for edit, source, where in (
        (flat, scene(), mask),
        (scene().roll(3, 3), scene(), torch.ones_like(mask)),
        (noise, scene(), mask),
        (torch.rand(1, 3, 12, 12), torch.rand(1, 3, 12, 12), torch.zeros(1, 1, 12, 12)),
    ):
        assert all(value.isnan() for value in drift(edit, source, where))


def test_each_sample_by_itself(mask):
    source = scene()
    edits = torch.cat([source, source.roll(4, 3)])
    shift, _ = drift(edits, source.expand(2, -1, -1, -1), mask.expand(2, -1, -1, -1))
    assert shift[0] == 0
    assert shift[1] == pytest.approx(4, abs=0.05)


def test_tiles_agree_with_scikit_image():
    tile = scene(96, 96)[0, 0]
    for moved in ((3, -5), (0, 7), (-4, 1)):
        other = tile.roll(moved, (0, 1))
        found, peak = phase_correlation(tile[None], other[None])
        expected = -phase_cross_correlation(tile.numpy(), other.numpy())[0]
        np.testing.assert_allclose(found[0], expected, atol=0.1)
        assert 0.1 < peak < 1.01
    _, peak = phase_correlation(tile[None], tile[None])
    assert peak == pytest.approx(1, abs=1e-3)
