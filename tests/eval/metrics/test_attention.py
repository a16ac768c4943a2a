import math

import pytest
import torch

from eval.metrics.attention import attention_iou


def square(top, left, side, size=64):
    mask = torch.zeros(1, 1, size, size)
    mask[..., top : top + side, left : left + side] = 1
    return mask


def test_map_on_the_mask_is_one_and_beside_it_zero():
    mask = square(16, 16, 16)
    region_map = torch.full((1, 1, 8, 8), 0.2)
    region_map[..., 2:4, 2:4] = 0.9
    assert attention_iou(region_map, mask).item() == 1
    assert attention_iou(region_map.flip(3), mask).item() == 0


def test_iou_counts_cells():
    mask = square(16, 16, 16)  # 4 cells
    wide = torch.full((1, 1, 8, 8), 0.2)
    wide[..., 2:4, 1:4] = 0.9  # 6 cells, 4 of them on the mask
    torch.testing.assert_close(attention_iou(wide, mask), torch.tensor([4 / 6]))


def test_the_boundary_itself_is_outside():
    # Uniform attention gives .5 everywhere: it must not count as attention to anything.
    assert attention_iou(torch.full((1, 1, 8, 8), 0.5), square(16, 16, 16)).item() == 0


def on(*cells, grid=8):
    """A map that is above the boundary in some cells."""
    found = torch.full((1, 1, grid, grid), 0.2)
    for y, x in cells:
        found[0, 0, y, x] = 0.9
    return found


def test_half_covered_cells_count_and_less_do_not():
    # 12 pixels are one and a half cells: the corner cell is a quarter covered.
    assert attention_iou(on((0, 0), (0, 1), (1, 0)), square(0, 0, 12)).item() == 1
    assert attention_iou(on((0, 0), grid=4), square(0, 0, 8)).item() == 1  # it cannot vanish


def test_a_tiny_object_keeps_the_cells_it_touches():
    assert attention_iou(on((0, 0), (0, 1), (1, 0), (1, 1)), square(7, 7, 2)).item() == 1


def test_samples_are_independent_and_empty_masks_nan():
    mask = torch.cat([square(16, 16, 16), torch.zeros(1, 1, 64, 64)])
    values = attention_iou(torch.ones(2, 1, 8, 8), mask).tolist()
    assert values[0] == pytest.approx(4 / 64)
    assert math.isnan(values[1])


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="does not fit"):
        attention_iou(torch.ones(1, 8, 8), square(0, 0, 8))
