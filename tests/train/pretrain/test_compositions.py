"""Images composed from a bank: layouts, pasted objects, masks."""

import pytest
import torch

from regionroute.data.object_bank import PHOTO, ObjectBank
from train.pretrain.compositions import Composer, Layer, visible
from train.pretrain.config import PhotoPairsConfig
from train.pretrain.placement import Placement


@pytest.fixture(scope="module")
def bank(bank_case, tmp_path_factory):
    return ObjectBank(bank_case.make_bank(tmp_path_factory.mktemp("bank")))


def composer(bank, **settings):
    return Composer(bank, "train", 32, PhotoPairsConfig(**settings))


def drawn(number):
    return torch.Generator().manual_seed(number)


@pytest.mark.parametrize(("layout", "count"), [("photo", 1), ("halves", 2), ("mosaic", 4)])
def test_tiles_fill_the_image_once(bank, layout, count):
    maker = composer(bank, layouts={layout: 1}, pasted=(1,))
    for number in range(4):
        layers = maker.layers(drawn(number))
        assert len(layers) == count
        covers = torch.stack([layer.cover for layer in layers])
        assert torch.equal(covers.sum(0), torch.ones(1, 32, 32))
        assert maker.compose(PHOTO, layers).min() > 0.05  # no photo of this bank is black


def test_masks_lie_on_the_objects_of_their_tiles(bank):
    """Objects are the only red things of this bank."""
    maker = composer(bank, layouts={"mosaic": 1})
    for number in range(6):
        layers = maker.layers(drawn(number))
        image, found = maker.compose(PHOTO, layers), visible(layers)
        red = (image[0] > 0.6) & (image[1] < 0.3)
        either = torch.cat(list(found.values())).amax(0) > 0.5
        assert (red & either).sum() > 0.8 * red.sum()
        assert (red & either).sum() > 0.8 * either.sum()


def test_what_is_pasted_hides_what_is_below():
    place = Placement((0, 4), (0, 4), False, (0, 0, 4, 4))
    whole, half = torch.ones(1, 4, 4), torch.zeros(1, 4, 4)
    half[..., :2] = 1
    layers = [Layer(0, whole, {"dog": whole}, place), Layer(1, half, {"cup": half}, place)]
    found = visible(layers)
    assert torch.equal(found["cup"], half)
    assert torch.equal(found["dog"], 1 - half)

    twice = visible(
        [Layer(0, half, {"dog": half}, place), Layer(1, 1 - half, {"dog": 1 - half}, place)]
    )
    assert torch.equal(twice["dog"], whole)


def test_shares_decide_the_layouts(bank):
    maker = composer(bank, layouts={"photo": 0.5, "mosaic": 0.5}, pasted=(1,))
    counts = {len(maker.layers(drawn(number))) for number in range(12)}
    assert counts == {1, 4}
    with pytest.raises(ValueError, match="layouts"):
        PhotoPairsConfig(layouts={"photo": 0})
