import pytest
import torch

from regionroute.attention import combine_maps, map_scores, mean_map, region_map


def test_normalised_maps_count_alike_and_an_empty_one_adds_nothing():
    left, right = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4)
    left[..., :2], right[..., 2:] = 1e-5, 1.0
    torch.testing.assert_close(combine_maps([left, right]), torch.ones(2, 4, 4))
    torch.testing.assert_close(combine_maps([left, torch.zeros(2, 4, 4)]), left * 1e5)
    assert torch.equal(combine_maps([left, right], "mean"), mean_map({"a": left, "b": right}))
    assert combine_maps([left, right], "mean")[0, 0, 0] < 1e-4


def test_the_region_map_forgets_the_scale_and_has_its_boundary_at_the_mean():
    attention = torch.tensor([[[0.0, 1.0], [2.0, 1.0]]])
    expected = torch.tensor([[[0.0, 0.5], [2 / 3, 0.5]]])
    torch.testing.assert_close(region_map(attention), expected)
    torch.testing.assert_close(region_map(attention * 1e-6), expected)
    assert region_map(torch.zeros(1, 2, 2)).eq(0.5).all()


def test_scores_of_known_maps():
    masks = torch.zeros(4, 4, 4)
    masks[0, :2] = 1  # half of the picture
    masks[1, 0, 0], masks[1, 3, 3] = 0.3, 0.2  # nowhere half a cell: the touched cells
    masks[2, 0] = 0.5
    perfect = masks.clone()
    iou, share = map_scores(perfect, masks)
    assert iou[:3].tolist() == [1, 1, 1]
    assert share[0] == 1
    assert iou[3].isnan()
    assert share[3].isnan()
    flat_iou, flat_share = map_scores(torch.ones(4, 4, 4), masks)
    assert flat_iou[:3].tolist() == [0, 0, 0]  # nothing lies above its mean
    assert flat_share[0] == pytest.approx(0.5)
    half = torch.zeros(4, 4)
    half[:1] = 1
    several = torch.stack([half, half.flip(0)])  # broadcast over maps
    iou, share = map_scores(several, masks[0])
    assert iou.tolist() == [0.5, 0]
    assert share.tolist() == [1, 0]


def test_the_geometric_mean_adds_up_logits():
    logits = torch.randn(4, 2, 3, 3)
    found = combine_maps(list(logits.exp()), "geometric")
    assert torch.allclose(found.log(), logits.mean(0), atol=1e-6)
    assert (combine_maps([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)], "geometric") < 1e-15).all()
