import pytest
import torch

from pseudo_labels.compose import composite, feather_inward


@pytest.fixture
def pictures():
    generator = torch.Generator().manual_seed(0)
    content, styled = torch.rand(2, 3, 12, 17, generator=generator)
    mask = torch.zeros(1, 12, 17)
    mask[:, 2:9, 3:12] = 1
    return content, styled, mask


@pytest.mark.parametrize("feather", [0, 1, 3])
def test_outside_the_mask_every_bit_is_the_contents(pictures, feather):
    content, styled, mask = pictures
    content[0, 0, 0] = -0.0  # equal to 0 as a number, another bit pattern
    out = composite(content, styled, mask, feather)
    outside = (mask == 0).expand_as(out)
    assert torch.equal(out[outside].view(torch.int32), content[outside].view(torch.int32))


def test_a_hard_edge_is_exactly_the_styled_picture_inside(pictures):
    content, styled, mask = pictures
    inside = (mask == 1).expand_as(content)
    assert torch.equal(composite(content, styled, mask)[inside], styled[inside])


def test_a_styled_picture_with_nan_outside_the_mask_does_no_harm(pictures):
    content, styled, mask = pictures
    styled = torch.where(mask == 0, torch.nan, styled)
    assert torch.isfinite(composite(content, styled, mask, feather=2)).all()


def test_feather_rises_inwards_and_reaches_the_styled_picture(pictures):
    content, styled, mask = pictures
    weight = feather_inward(mask, 2)
    assert torch.allclose(weight[0, 5, 2:7], torch.tensor([0, 1 / 3, 2 / 3, 1, 1]))
    deep = (weight == 1).expand_as(content)
    assert deep.any()
    assert torch.equal(composite(content, styled, mask, 2)[deep], styled[deep])


def test_the_pictures_own_border_is_no_edge():
    mask = torch.ones(1, 6, 6)
    mask[:, :, 3:] = 0
    weight = feather_inward(mask, 1)
    assert torch.equal(weight[0, :, 0], torch.ones(6))
    assert torch.equal(weight[0, :, 2], torch.full((6,), 0.5))


def test_a_batch_is_its_pictures(pictures):
    content, styled, mask = pictures
    pair = [
        torch.stack([a, b]) for a, b in ((content, styled), (styled, content), (mask, 1 - mask))
    ]
    both = composite(*pair, feather=1)
    assert torch.equal(both[0], composite(content, styled, mask, 1))
    assert torch.equal(both[1], composite(styled, content, 1 - mask, 1))


def test_wrong_shapes_and_soft_masks_are_refused(pictures):
    content, styled, mask = pictures
    with pytest.raises(ValueError, match="styled is"):
        composite(content, styled[:, 1:], mask)
    with pytest.raises(ValueError, match="mask is"):
        composite(content, styled, mask[:, 1:])
    with pytest.raises(ValueError, match="zeros and ones"):
        composite(content, styled, mask * 0.5)
    with pytest.raises(ValueError, match="feather"):
        composite(content, styled, mask, -1)
