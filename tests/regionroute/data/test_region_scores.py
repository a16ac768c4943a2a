"""Scores that training, evaluation and calibration share."""

import pytest
import torch

from regionroute.data.region_scores import (
    edit_scores,
    in_mask_ratio,
    map_iou,
    mse_bg,
    object_cells,
    share_inside,
)


def test_means_are_over_the_samples_that_have_a_value():
    torch.manual_seed(0)
    edits, sources, targets = torch.rand(3, 4, 3, 8, 8)
    masks = torch.rand(4, 1, 8, 8).gt(0.6).float()
    masks[3] = 1  # no background
    targets[2] = sources[2]  # nothing to gain
    found = edit_scores(edits, sources, targets, masks)
    ratio = in_mask_ratio(edits, sources, targets, masks)
    beside = mse_bg(edits, sources, masks)
    assert ratio[2].isnan()
    assert beside[3].isnan()
    assert found["error_left"] == pytest.approx(float(ratio.nanmean()))
    assert found["background_error"] == pytest.approx(float(beside.nanmean()))
    assert edit_scores(edits[:0], sources[:0], targets[:0], masks[:0]) == {}


def test_half_covered_cells_are_object_and_a_tiny_object_keeps_the_cells_it_touches():
    masks = torch.tensor([[[1.0, 0.5], [0.49, 0.0]], [[0.1, 0.0], [0.3, 0.0]]])
    assert object_cells(masks).tolist() == [[[1, 1], [0, 0]], [[1, 0], [1, 0]]]


def test_map_scores_of_known_maps():
    masks = torch.zeros(3, 2, 2)
    masks[0, 0], masks[1] = 1, 1
    maps = torch.tensor([[0.9, 0.2], [0.9, 0.5]]).expand(3, 2, 2)
    iou = map_iou(maps, masks)
    assert iou[:2].tolist() == pytest.approx([1 / 3, 1 / 2])  # the boundary itself is outside
    assert iou[2].isnan()
    share = share_inside(maps, masks)
    assert share[:2].tolist() == pytest.approx([1.1 / 2.5, 1])
    assert share[2].isnan()
    assert share_inside(torch.zeros(2, 2), masks[0]) == 0
