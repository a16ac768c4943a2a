"""The fusion module: identity at the start, who sees whom, styles that matter once trained."""

import pytest
import torch

from pseudo_labels.stylemamba.config import FusionConfig
from pseudo_labels.stylemamba.modules.fusion import (
    Mixer,
    StyleFusion,
    decayed_parameters,
    sine_positions,
)

GRID = (4, 5)


def module(trained=False, latents=4, style=6, **options):
    """A module; `trained`: every weight random, as after some training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fusion = StyleFusion(latents, style, FusionConfig(width=16, blocks=2, states=4, **options))
        if trained:
            for name, parameter in fusion.named_parameters():
                if "A_log" not in name:
                    parameter.data.add_(0.2 * torch.randn_like(parameter))
    return fusion


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


OPTIONS = [{}, {"condition": "ssm"}, {"feed_forward": True}, {"directions": 1}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("grid", [(4, 4), (3, 7)])
def test_it_is_the_identity_at_the_start(options, grid):
    z = normal(2, 4, *grid)
    assert torch.equal(module(**options)(z, normal(2, 6)), z)


@pytest.mark.parametrize("directions", [1, 4])
def test_who_sees_whom(directions):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mixer = Mixer(FusionConfig(width=8, states=4, directions=directions))
    count = GRID[0] * GRID[1]
    code = normal(1, 8)
    jacobian = torch.autograd.functional.jacobian(
        lambda tokens: mixer(tokens, code, GRID)[0].sum(-1), normal(1, count, 8)
    )
    reached = jacobian[:, 0].abs().sum(-1) > 0  # [to, from]
    expected = torch.ones(count, count, dtype=torch.bool)
    assert torch.equal(reached, expected.tril() if directions == 1 else expected)


def test_four_directions_treat_the_axes_alike():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mixer = Mixer(FusionConfig(width=8, states=4))
    tokens, code = normal(1, 20, 8), normal(1, 8)
    out = mixer(tokens, code, GRID).unflatten(1, GRID)
    turned = tokens.unflatten(1, GRID).transpose(1, 2)
    again = mixer(turned.flatten(1, 2), code, (5, 4)).unflatten(1, (5, 4)).transpose(1, 2)
    torch.testing.assert_close(again, out, rtol=1e-4, atol=1e-6)
    upside = tokens.unflatten(1, GRID).flip(1, 2)
    again = mixer(upside.flatten(1, 2), code, GRID).unflatten(1, GRID).flip(1, 2)
    torch.testing.assert_close(again, out, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_trained_it_follows_the_style_and_the_batchs_order(options):
    fusion = module(trained=True, **options)
    z, styles = normal(3, 4, *GRID), normal(3, 6, seed=1)
    out = fusion(z, styles)
    assert (fusion(z, styles.roll(1, 0)) - out).abs().amax((1, 2, 3)).min() > 1e-3
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(fusion(z[order], styles[order]), out[order], rtol=1e-4, atol=1e-5)


def test_the_stronger_condition_reaches_the_scan_itself():
    mixer = module(trained=True, condition="ssm").blocks[0].mixer
    tokens = normal(1, 20, 16)
    first, second = (mixer(tokens, normal(1, 16, seed=s), GRID) for s in (1, 2))
    assert (first - second).abs().max() > 1e-3
    plain = module(trained=True).blocks[0].mixer
    assert torch.equal(plain(tokens, normal(1, 16, seed=1), GRID),
                       plain(tokens, normal(1, 16, seed=2), GRID))  # fmt: skip


def test_a_blend_lies_between_its_styles():
    fusion = module(trained=True)
    styles = normal(2, 6, seed=1)
    codes = fusion.style(styles)
    assert torch.allclose(fusion.blend(styles, torch.tensor([1.0, 0.0])), codes[:1])
    assert torch.allclose(fusion.blend(styles, torch.tensor([2.0, 6.0])),
                          0.25 * codes[:1] + 0.75 * codes[1:], atol=1e-6)  # fmt: skip


def test_positions_are_unlike_each_other_and_bounded():
    places = sine_positions(16, 24, 32)
    assert places.shape == (384, 32)
    assert places.abs().max() <= 1
    apart = torch.cdist(places, places) + 10 * torch.eye(384)
    assert apart.min() > 0.1


def test_step_sizes_start_between_a_thousandth_and_a_tenth():
    steps = torch.nn.functional.softplus(module().blocks[0].mixer.step.bias)
    assert steps.min() > 0.9e-3
    assert steps.max() < 0.11


def test_no_decay_of_rates_biases_and_norms():
    fusion = module()
    decayed, others = decayed_parameters(fusion)
    names = {id(p): n for n, p in fusion.named_parameters()}
    kept = {names[id(p)].rpartition(".")[2] for p in others}
    assert {"A_log", "D", "bias"} <= kept
    assert all(p.ndim > 1 for p in decayed)
    assert not any("A_log" in names[id(p)] for p in decayed)
    assert len(decayed) + len(others) == len(names)


def test_large_weights_of_the_scan_do_not_multiply():
    # Step sizes, input and output weights of the scan are multiplied with each other.
    def size(normalize):
        torch.manual_seed(0)
        mixer = Mixer(FusionConfig(width=16, states=4, normalize=normalize))
        with torch.no_grad():
            mixer.select.weight.mul_(1000)
        return float(mixer(normal(1, 20, 16), normal(1, 16), GRID).detach().abs().max())

    with torch.random.fork_rng(devices=[]):
        small, large = size(normalize=True), size(normalize=False)
    assert small < 10
    assert large > 1e5
