"""Gates, their refinement, and the mixing of velocities."""

import pytest
import torch

from regionroute.config.run import RoutingConfig
from regionroute.data.images import STRIP
from regionroute.routing.gates import (
    attention_concentration,
    boundary_map,
    composite,
    keep_velocity,
    route_velocity,
    sharpen,
    token_gates,
    widen_gates,
)

CONFIG = RoutingConfig()


def disc(size=8, radius=2.5, centre=(4.0, 4.0)):
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    distance = ((rows + 0.5 - centre[0]) ** 2 + (columns + 0.5 - centre[1]) ** 2).sqrt()
    return (distance < radius).float()


def test_the_level_is_that_of_the_region_whatever_its_size():
    for radius in (1.5, 3.0):
        maps = (0.02 * disc(radius=radius))[None, None]
        assert attention_concentration(maps).item() == pytest.approx(0.02)


def test_gates_open_on_the_object_and_ignore_the_scale_of_attention():
    maps = (0.001 + 0.05 * disc())[None, None]
    gates = token_gates(maps, CONFIG)
    assert gates[0, 0][disc() > 0].min() > 0.8
    assert gates[0, 0][disc() == 0].max() < 0.1
    torch.testing.assert_close(token_gates(100 * maps, CONFIG), gates)


def test_a_gate_is_half_open_at_the_threshold():
    maps = torch.full((1, 1, 4, 4), 1.0)
    maps[..., 0, 0] = CONFIG.threshold
    level = attention_concentration(maps).item()
    maps[..., 0, 0] = CONFIG.threshold * level
    half = token_gates(maps, CONFIG)[0, 0, 0, 0].item()
    assert half == pytest.approx(0.5, abs=0.01)


def test_the_shown_map_has_the_gates_boundary_and_gives_the_attention_back():
    maps = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(4))
    shown, gates = boundary_map(maps, CONFIG), token_gates(maps, CONFIG)
    assert torch.equal(shown > 0.5, gates > 0.5)
    back = shown / (1 - shown)
    torch.testing.assert_close(back / back.sum((-2, -1), keepdim=True),
                               maps / maps.sum((-2, -1), keepdim=True))  # fmt: skip
    assert boundary_map(torch.zeros(1, 1, 2, 2), CONFIG).eq(0).all()


def test_a_map_of_zeros_gives_a_closed_gate():
    assert token_gates(torch.zeros(1, 2, 4, 4), CONFIG).eq(0).all()


def test_gates_of_several_pairs_never_add_up_to_more_than_one():
    maps = torch.stack([disc(), disc(centre=(4.0, 5.0)), disc()])[None] * 0.1 + 1e-4
    gates = token_gates(maps, CONFIG)
    assert gates.sum(1).max() <= 1 + 1e-6
    for opening in (1.0, 2.0):
        config = CONFIG.model_copy(update={"opening": opening})
        assert widen_gates(gates, config).sum(1).max() <= 1 + 1e-6


def test_what_is_cut_out_again_is_open_a_token_further_and_as_wide_as_told():
    gates = torch.zeros(1, 1, 4, 5)
    gates[..., 1] = 0.4
    for opening, wanted in ((1.0, 0.4), (2.0, 0.8), (5.0, 1.0)):
        wide = widen_gates(gates, CONFIG.model_copy(update={"opening": opening}))[0, 0, 0]
        torch.testing.assert_close(wide, torch.tensor([wanted] * 3 + [0.0] * 2))


def velocities(pairs=2):
    generator = torch.Generator().manual_seed(2)
    speeds = torch.randn(1, pairs, 3, 8, 8, generator=generator)
    noisy, context = torch.randn(2, 1, 3, 8, 8, generator=generator).unbind()
    return speeds, keep_velocity(noisy, context, torch.tensor([0.4])), noisy, context


def test_the_way_back_ends_at_the_context():
    _, keep, noisy, context = velocities()
    torch.testing.assert_close(noisy - 0.4 * keep, context)


def test_closed_gates_keep_and_an_open_one_gives_its_branch():
    speeds, keep, _, _ = velocities()
    gates = torch.zeros(1, 2, 4, 4)
    assert torch.equal(route_velocity(speeds, gates, keep), keep)
    gates[:, 1] = 1
    torch.testing.assert_close(route_velocity(speeds, gates, keep), speeds[:, 1])


def test_each_token_follows_its_own_gate():
    speeds, keep, _, _ = velocities()
    gates = torch.zeros(1, 2, 4, 4)
    gates[0, 0, 0, 0], gates[0, 1, 3, 3], gates[0, 0, 1, 1] = 1.0, 1.0, 0.25
    mixed = route_velocity(speeds, gates, keep)
    torch.testing.assert_close(mixed[..., :2, :2], speeds[:, 0, :, :2, :2])
    torch.testing.assert_close(mixed[..., 6:, 6:], speeds[:, 1, :, 6:, 6:])
    torch.testing.assert_close(
        mixed[..., 2:4, 2:4],
        0.25 * speeds[:, 0, :, 2:4, 2:4] + 0.75 * keep[..., 2:4, 2:4],
    )
    assert torch.equal(mixed[..., :2, 2:4], keep[..., :2, 2:4])


def test_a_composite_leaves_the_rest_bit_for_bit():
    edited, source = torch.rand(2, 1, 3, 8, 8, generator=torch.Generator().manual_seed(3)).unbind()
    gates = torch.zeros(1, 2, 8, 8)
    gates[0, 0, :2], gates[0, 1, 2] = 1.0, 0.5
    out = composite(edited, source, gates)
    assert torch.equal(out[..., 3:, :], source[..., 3:, :])
    torch.testing.assert_close(out[..., :2, :], edited[..., :2, :])
    torch.testing.assert_close(out[..., 2, :], 0.5 * (edited + source)[..., 2, :])


@pytest.mark.parametrize("in_place", [False, True])
def test_a_composite_of_many_strips_is_that_of_the_whole(in_place):
    size = 2, 3, 2 * STRIP + 3, 5
    edited, source = torch.rand(2, *size, generator=torch.Generator().manual_seed(3)).unbind()
    gates = torch.rand(2, 2, *size[2:], generator=torch.Generator().manual_seed(4))
    gates = (gates - 0.5).clamp(0, 1)
    inside, before = gates.sum(1, keepdim=True), edited.clone()
    expected = torch.where(inside > 0, source + inside * (edited - source), source).clamp(0, 1)
    out = composite(edited, source, gates, in_place=in_place)
    assert torch.equal(out, expected)
    assert torch.equal(edited, expected if in_place else before)


def test_sharpening_steepens_edges_inside_the_gates_and_leaves_the_rest_to_the_bit():
    ramp = torch.linspace(0.3, 0.7, 4)
    row = torch.cat([torch.full((14,), 0.3), ramp, torch.full((14,), 0.7)])
    picture = row.expand(1, 3, 32, 32).clone()
    gates = torch.zeros(1, 2, 4, 4)
    gates[0, 1, :2] = 1

    sharp = sharpen(picture, gates, 1.0)

    assert torch.equal(sharp[..., 16:, :], picture[..., 16:, :])
    steepest = [x[0, 0, 8].diff().max().item() for x in (picture, sharp)]
    assert steepest[1] > 1.2 * steepest[0]
    torch.testing.assert_close(sharp[..., :10], picture[..., :10])  # nothing to sharpen
    assert sharpen(picture, gates, 9.0).amin() >= 0
