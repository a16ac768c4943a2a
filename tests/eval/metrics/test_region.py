import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation

from eval.metrics.region import (
    boundary_band,
    boundary_error,
    coverage,
    leak,
    success,
)
from regionroute.data.region_scores import in_mask_error, in_mask_ratio, mse_bg


@pytest.fixture
def pictures():
    """content, output, target [3,3,20,24] and mask [3,1,20,24] with shares .1 to .6."""
    rng = torch.Generator().manual_seed(0)
    content, output, target = torch.rand(3, 3, 3, 20, 24, generator=rng)
    share = torch.tensor([0.1, 0.3, 0.6]).view(3, 1, 1, 1)
    mask = (torch.rand(3, 1, 20, 24, generator=rng) < share).float()
    return content, output, target, mask


def reference(output, other, mask):
    """Mean squared difference in [-1,1] over the pixels of the mask, in float64."""
    values = []
    for a, b, m in zip(output, other, mask, strict=True):
        a, b = (x.double().numpy() * 2 - 1 for x in (a, b))
        values.append(((a - b) ** 2)[:, m[0].numpy() > 0.5].mean())
    return np.array(values)


def changed_reference(output, content, mask):
    values = []
    for a, b, m in zip(output.numpy(), content.numpy(), mask[:, 0].numpy(), strict=True):
        values.append((np.abs(a - b).max(0)[m > 0.5] > 0.1).mean())
    return np.array(values)


def test_equal_to_plain_formulas(pictures):
    content, output, target, mask = pictures
    np.testing.assert_allclose(
        mse_bg(output, content, mask), reference(output, content, 1 - mask), rtol=1e-5
    )
    np.testing.assert_allclose(
        in_mask_error(output, target, mask), reference(output, target, mask), rtol=1e-5
    )
    ratio = reference(output, target, mask) / reference(content, target, mask)
    np.testing.assert_allclose(in_mask_ratio(output, content, target, mask), ratio, rtol=1e-5)
    near = content + 0.25 * (output - content)  # so that only some pixels pass the threshold
    np.testing.assert_allclose(
        leak(near, content, mask), changed_reference(near, content, 1 - mask), rtol=1e-6
    )
    np.testing.assert_allclose(
        coverage(near, content, mask), changed_reference(near, content, mask), rtol=1e-6
    )


def test_no_edit_leaves_the_background_and_the_whole_error(pictures):
    content, _, target, mask = pictures
    assert (mse_bg(content, content, mask) == 0).all()
    assert (leak(content, content, mask) == 0).all()
    assert (coverage(content, content, mask) == 0).all()
    assert (in_mask_ratio(content, content, target, mask) == 1).all()
    assert (success(content, content, target, mask) == 0).all()


def test_an_edit_inside_the_mask_is_no_background_error_at_all(pictures):
    content, output, target, mask = pictures
    inside = torch.where(mask > 0, output, content)
    assert (mse_bg(inside, content, mask) == 0).all()
    assert (leak(inside, content, mask) == 0).all()
    assert (in_mask_error(torch.where(mask > 0, target, output), target, mask) == 0).all()


@pytest.mark.parametrize("shift", [0.05, 0.5])
def test_a_constant_background_shift_costs_its_square(pictures, shift):
    content, _, _, mask = pictures
    moved = content + (1 - mask) * shift / 2  # a shift in [-1,1] is half as large in [0,1]
    torch.testing.assert_close(mse_bg(moved, content, mask), torch.full((3,), shift**2))


def test_success_is_less_than_half_of_the_error(pictures):
    content, _, target, mask = pictures
    way = torch.tensor([0.25, 0.3, 1.0]).view(3, 1, 1, 1)  # error left: (1 - way)^2
    assert success(content + way * (target - content), content, target, mask).tolist() == [0, 1, 1]


def test_undefined_is_nan_and_never_zero(pictures):
    content, output, target, mask = pictures
    full, empty = torch.ones_like(mask), torch.zeros_like(mask)
    assert mse_bg(output, content, full).isnan().all()
    assert leak(output, content, full).isnan().all()
    assert in_mask_error(output, target, empty).isnan().all()
    assert in_mask_ratio(output, content, content, mask).isnan().all()
    assert success(output, content, content, mask).isnan().all()


def test_a_picture_with_nan_is_nan_not_unchanged(pictures):
    content, output, _, mask = pictures
    broken = output.clone()
    broken[0, 0] = torch.nan
    assert leak(broken, content, mask).isnan().tolist() == [True, False, False]
    assert mse_bg(broken, content, mask).isnan().tolist() == [True, False, False]


def test_the_batch_does_not_matter(pictures):
    content, output, target, mask = pictures
    whole = in_mask_ratio(output, content, target, mask)
    parts = [
        in_mask_ratio(*(x[i : i + 1] for x in (output, content, target, mask))) for i in range(3)
    ]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-6, atol=0)


def test_shapes_that_do_not_go_together_are_refused(pictures):
    content, output, _, mask = pictures
    with pytest.raises(ValueError, match="does not fit"):
        mse_bg(output, content, mask[:, 0])
    with pytest.raises(ValueError, match="does not fit"):
        mse_bg(output, content, mask.expand(-1, 3, -1, -1))
    with pytest.raises(ValueError, match="differ in shape"):
        leak(output[:, :1], content, mask)


def test_the_band_is_the_background_next_to_the_object():
    mask = torch.zeros(1, 1, 100, 140)
    mask[:, :, 40:60, 50:80] = 1
    mask[:, :, 0, 0] = 1
    inside = mask[0, 0].numpy() > 0
    expected = binary_dilation(inside, np.ones((5, 5))) & ~inside  # 2 % of 100 pixels: 2
    np.testing.assert_array_equal(boundary_band(mask)[0, 0].numpy() > 0, expected)
    content = torch.rand(1, 3, 100, 140)
    output = torch.where(boundary_band(mask) > 0, content, 1 - content)
    assert boundary_error(output, content, mask) == 0
    seam = torch.where(boundary_band(mask) > 0, content + 0.1, content)
    np.testing.assert_allclose(boundary_error(seam, content, mask), 0.04, rtol=1e-4)
    assert boundary_error(seam, content, torch.ones_like(mask)).isnan()
    small = torch.zeros(1, 1, 20, 20)
    small[:, :, 10, 10] = 1
    assert boundary_band(small).sum() == 8  # never less than one pixel
