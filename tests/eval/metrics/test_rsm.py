import pytest
import torch

from eval.metrics.rsm import crop_box, rsm


def mask_of(box, size=(100, 120)):
    mask = torch.zeros(1, *size)
    mask[:, box[0] : box[2], box[1] : box[3]] = 1
    return mask


def test_box_is_padded_by_eight_pixels_or_five_percent_and_clipped():
    assert crop_box(mask_of((40, 50, 60, 60))) == (32, 42, 68, 68)
    big = torch.zeros(1, 1000, 1000)
    big[:, 300:700, 400:500] = 1
    assert crop_box(big) == (280, 380, 720, 520)
    assert crop_box(mask_of((2, 0, 98, 120))) == (0, 0, 100, 120)
    with pytest.raises(ValueError, match="empty"):
        crop_box(torch.zeros(1, 9, 9))


def test_equal_directions_are_one_and_opposite_ones_zero(stub_encoder):
    encoder = stub_encoder({"line-art style": [0.3, 0.2, 0.1], "neon style": [-3.0, -2.0, -1.0]})
    picture = torch.tensor([0.3, 0.2, 0.1]).view(1, 3, 1, 1).expand(2, 3, 100, 120)
    masks = mask_of((40, 50, 60, 60)).expand(2, 1, 100, 120)
    values = rsm(picture, masks, ["line-art", "neon"], encoder)
    torch.testing.assert_close(values, torch.tensor([1.0, 0.0]))


def test_only_the_crop_is_seen(stub_encoder):
    encoder = stub_encoder({"a style": [1.0, 0.0, 0.0]})
    picture = torch.zeros(1, 3, 100, 120)
    picture[:, 1] = 1
    picture[:, :, 32:68, 42:68] = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    mask = mask_of((40, 50, 60, 60))[None]
    torch.testing.assert_close(rsm(picture, mask, ["a"], encoder), torch.ones(1))
    assert encoder.crops[0].shape == (3, 36, 26)


def test_counts_that_differ_are_refused(stub_encoder):
    with pytest.raises(ValueError, match="2 styles"):
        rsm(torch.rand(1, 3, 9, 9), torch.ones(1, 1, 9, 9), ["a", "b"], stub_encoder({}))
