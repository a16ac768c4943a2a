"""Gates on the pixels: edges and colours."""

import itertools

import torch

from regionroute.config.run import RoutingConfig
from regionroute.routing import pixel_gates as module
from regionroute.routing.pixel_gates import pixel_gates

CONFIG = RoutingConfig()
COLOURED = CONFIG.model_copy(update={"colour": 1.0})


def disc(size, radius, centre):
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    distance = ((rows + 0.5 - centre[0]) ** 2 + (columns + 0.5 - centre[1]) ** 2).sqrt()
    return (distance < radius).float()


def striped(mask):
    """A picture [1,3,H,W] of a red and white object on blue and green: no colour is its mean's."""
    stripes = (torch.arange(mask.shape[-1]) % 8 < 4).float().expand_as(mask)
    inside = torch.stack([1 + 0 * mask, stripes, stripes])
    outside = torch.stack([0 * mask, stripes, 1 - stripes])
    picture = (0.2 + 0.6 * torch.where(mask > 0, inside, outside))[None]
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))
    return (picture + 0.03 * noise).clamp(0, 1)


def missed_and_leaked(size=8):
    """The disc's gates [1,1,h,w] with a token of the object left out, and tokens beside it in."""
    gates = torch.nn.functional.avg_pool2d(disc(64, 20.0, (30.0, 35.0))[None, None], size)
    gates[..., 3, 4] = 0.15
    gates[..., 0, 3:6] = 0.6
    return gates.clamp(0.02, 0.98)


def test_colours_mend_a_map_that_misses_a_part_and_takes_some_of_the_rest():
    mask = disc(64, 20.0, (30.0, 35.0))
    picture, gates = striped(mask), missed_and_leaked()
    wrong = {
        name: (pixel_gates(gates, picture, config)[0, 0] - mask).abs().mean().item()
        for name, config in (("edges", CONFIG), ("colours", COLOURED))
    }
    assert wrong["colours"] < 0.5 * wrong["edges"]


def test_colours_do_not_open_what_the_map_has_closed():
    """A second object of the same colours far away stays as it is, to the bit."""
    mask, other = disc(64, 12.0, (16.0, 16.0)), disc(64, 8.0, (50.0, 50.0))
    gates = torch.nn.functional.avg_pool2d(mask[None, None], 8)
    for weight in (1.0, 100.0):
        config = CONFIG.model_copy(update={"colour": weight})
        found = pixel_gates(gates, striped(torch.maximum(mask, other)), config)[0, 0]
        assert found[other > 0].eq(0).all()
        assert found[mask > 0].mean() > 0.9


def test_colours_weigh_as_much_as_told():
    picture, gates = striped(disc(64, 20.0, (30.0, 35.0))), missed_and_leaked()
    least, most = (
        pixel_gates(gates, picture, CONFIG.model_copy(update={"colour": weight}))
        for weight in (1e-6, 4.0)
    )
    plain = pixel_gates(gates, picture, CONFIG)
    assert (least - plain).abs().mean() < 0.3 * (most - plain).abs().mean()


def test_each_picture_of_a_batch_is_told_apart_by_its_own_colours():
    masks = [disc(64, 20.0, (30.0, 35.0)), disc(64, 14.0, (20.0, 30.0))]
    pictures = torch.cat([striped(masks[0]), 1 - striped(masks[1])])
    gates = torch.cat([missed_and_leaked(), missed_and_leaked().flip(-1)])
    together = pixel_gates(gates, pictures, COLOURED)
    for row in range(2):
        alone = pixel_gates(gates[row : row + 1], pictures[row : row + 1], COLOURED)
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-4, rtol=0)


def test_odd_pictures_and_gates_give_gates():
    flat, black_and_white = torch.full((1, 3, 32, 48), 0.3), torch.zeros(1, 3, 32, 48)
    black_and_white[..., ::2] = 1
    one_token, faint = torch.zeros(1, 1, 4, 6), torch.full((1, 1, 4, 6), 1e-6)
    one_token[..., 2, 3] = 1
    for picture, gates in itertools.product((flat, black_and_white), (one_token, faint)):
        found = pixel_gates(gates, picture, COLOURED)
        assert found.isfinite().all()
        assert 0 <= found.min() <= found.max() <= 1
        assert found[..., :8, :8].eq(0).all()


def test_pixel_gates_of_several_pairs_never_add_up_to_more_than_one():
    gates = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    gates = gates / gates.sum(1, keepdim=True)
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    for config in (CONFIG, COLOURED):
        assert pixel_gates(gates, picture, config).sum(1).max() <= 1 + 1e-6


def test_pixel_gates_find_the_edge_inside_a_token():
    """A red object whose border lies within tokens of 8 pixels."""
    mask = disc(64, radius=20.0, centre=(30.0, 35.0))
    generator = torch.Generator().manual_seed(0)
    picture = torch.stack([mask, 0.3 + 0 * mask, 1 - mask])[None]
    picture = (picture + 0.02 * torch.randn(picture.shape, generator=generator)).clamp(0, 1)
    coarse = torch.nn.functional.avg_pool2d(mask[None, None], 8)
    wrong = {
        "refined": pixel_gates(coarse, picture, CONFIG),
        "smooth": pixel_gates(coarse, picture, CONFIG.model_copy(update={"radius": 0.0})),
    }
    errors = {name: (gates[0, 0] - mask).abs().mean().item() for name, gates in wrong.items()}
    assert errors["refined"] < 0.4 * errors["smooth"]


def test_gates_of_large_pictures_are_fitted_to_small_ones(monkeypatch):
    mask = disc(500, radius=150.0, centre=(230.0, 270.0))
    generator = torch.Generator().manual_seed(0)
    picture = torch.stack([mask, 0.3 + 0 * mask, 1 - mask])[None]
    picture = (picture + 0.02 * torch.randn(picture.shape, generator=generator)).clamp(0, 1)
    coarse = torch.nn.functional.interpolate(mask[None, None], (8, 8), mode="area")
    config = CONFIG.model_copy(update={"radius": 1.5, "contrast": 1.0})  # 94 pixels
    small = pixel_gates(coarse, picture, config)
    monkeypatch.setattr(module, "_FINE_RADIUS", 10_000)
    whole = pixel_gates(coarse, picture, config)

    assert not torch.equal(small, whole)
    assert (small - whole).abs().mean() < 0.015
    errors = [(gates[0, 0] - mask).abs().mean() for gates in (small, whole)]
    assert errors[0] < 1.1 * errors[1] + 0.002


def test_open_and_closed_gates_stay_so_on_any_picture():
    picture = torch.rand(2, 3, 24, 40, generator=torch.Generator().manual_seed(1))
    for value, config in itertools.product((0.0, 1.0), (CONFIG, COLOURED)):
        gates = pixel_gates(torch.full((2, 1, 6, 10), value), picture, config)
        torch.testing.assert_close(gates, torch.full((2, 1, 24, 40), value))


def test_images_of_a_batch_do_not_depend_on_each_other():
    """Two objects each. Colours so nearly collinear make much of how sums are rounded."""
    down, across = torch.linspace(0, 1, 160)[:, None], torch.linspace(0, 1, 240)
    channels = [0.3 + 0.5 * across, 0.2 + 0.4 * across + 0.05 * down, 0.1 + 0.3 * across]
    image = torch.stack([channel.expand(160, 240) for channel in channels])[None]
    masks = [
        ((across - x) ** 2 + (down - 0.5) ** 2 < area).float()
        for x, area in ((0.4, 0.05), (0.8, 0.02))
    ]
    gates = torch.nn.functional.avg_pool2d(torch.stack(masks)[None], 8).clamp(0.01, 0.97)
    images, gates = (torch.cat([x, x.flip(-1)]) for x in (image, gates))
    together = pixel_gates(gates, images, COLOURED)
    for row in range(2):
        alone = pixel_gates(gates[row : row + 1], images[row : row + 1], COLOURED)[0]
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=0)
