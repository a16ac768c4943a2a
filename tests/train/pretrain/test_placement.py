import torch

from train.pretrain.placement import Placement, put


def test_put_crops_mirrors_and_scales():
    square = torch.arange(16.0).view(1, 4, 4)
    out = put(square, Placement((0, 2), (0, 2), True, (1, 1, 2, 2)), 4)

    assert out[0].tolist() == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 5, 4, 0], [0, 0, 0, 0]]
    assert put(square, Placement((0, 4), (0, 4), False, (0, 0, 2, 2)), 4)[0, :2, :2].mean() > 5
