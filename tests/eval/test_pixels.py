"""Pixel metrics in memory against naive arithmetic."""

import math

import pytest
import torch

from eval.metrics import CATALOGUE
from eval.pixels import WITH_TARGET, WITHOUT_TARGET, score_pixels
from regionroute.errors import UserError


def images(*values):
    return torch.stack([torch.full((3, 20, 30), value) for value in values])


def left_half(count):
    mask = torch.zeros(count, 1, 20, 30)
    mask[..., :15] = 1
    return mask


def test_values_are_those_of_the_definitions():
    content, target = images(0.2, 0.2), images(0.8, 0.8)
    output = content.clone()
    output[0, :, :, :15] = 0.8  # a perfect edit
    output[1, :, :, 15:] = 0.5  # the background instead of the object
    scores = score_pixels(content, output, left_half(2), target)
    assert list(scores) == [name for name in CATALOGUE if name in WITH_TARGET + WITHOUT_TARGET]
    assert scores["success"].tolist() == [1, 0]
    assert scores["in_mask_ratio"].tolist() == pytest.approx([0, 1])
    assert scores["coverage"].tolist() == [1, 0]
    assert scores["leak"].tolist() == [0, 1]
    # MSE on the scale of [-1,1], as published: four times that of [0,1].
    assert scores["mse_bg"].tolist() == pytest.approx([0, 4 * 0.3**2], rel=1e-5)
    assert all(math.isnan(value) for value in scores["drift_shift"])  # nothing to correlate


def test_without_a_target_only_what_needs_none():
    scores = score_pixels(images(0.2), images(0.2), 0.6 * left_half(1))
    assert set(scores) == set(WITHOUT_TARGET)
    assert scores["coverage"].item() == scores["leak"].item() == 0


@pytest.mark.parametrize("name", ["edit", "target", "mask"])
def test_other_sizes_are_refused(name):
    given = {"edit": images(0.2), "target": images(0.2), "mask": left_half(1)}
    given[name] = given[name][..., :10]
    with pytest.raises(UserError, match=f"{name}: 1 of 10x20 pixels, but the source is 1 of 30x20"):
        score_pixels(images(0.2), given["edit"], given["mask"], given["target"])


def test_an_empty_mask_is_refused():
    with pytest.raises(UserError, match="it is empty, no pixel reaches"):
        score_pixels(
            images(0.2, 0.2),
            images(0.2, 0.2),
            left_half(2) * torch.tensor([1, 0.4]).view(2, 1, 1, 1),
        )
