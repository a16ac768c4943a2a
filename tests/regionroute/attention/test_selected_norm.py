"""Supervision normalised over the selected tokens, as in the published code: losses per token."""

import pytest
import torch

from regionroute.attention import AttentionPlan, AttentionRecorder, attention_loss
from regionroute.attention.losses import cover_loss, focus_loss

BATCH, HEADS, TEXT, SIDE, WIDTH = 2, 2, 6, 4, 8


class Released:
    """The constants of the published code."""

    focus_input, tau, cover_mode, alpha, aggregate = "prob", 0.1, "prob", 2.0, "layer"


class Map(Released):
    aggregate = "map"


def plan_of(tokens, padding=0):
    """Two samples of one pair with so many style tokens; the object is the left half."""
    index = torch.arange(1, 1 + tokens).expand(BATCH, 1, tokens)
    index = torch.nn.functional.pad(index, (0, padding), value=-1)
    masks = torch.zeros(BATCH, 1, SIDE, SIDE)
    masks[..., : SIDE // 2] = 1
    valid = torch.ones(BATCH, 1, dtype=torch.bool)
    return AttentionPlan(index, masks, valid, TEXT, SIDE * SIDE)


def recorded(plan, query, key, monkeypatch, norm="selected"):
    """A recorder that has seen one attention block, without a model around it."""
    from regionroute.config.sites import AttentionSite

    recorder = AttentionRecorder(norm=norm)
    monkeypatch.setattr(recorder, "_plan", plan)
    site = AttentionSite("double.0", "double.0", "target", None, "style")
    recorder.attend([site], query, key, key)
    return recorder


@pytest.fixture
def states():
    generator = torch.Generator().manual_seed(0)
    shape = BATCH, HEADS, TEXT + 2 * SIDE * SIDE, WIDTH
    return [torch.randn(shape, generator=generator, requires_grad=True) for _ in range(2)]


@pytest.mark.parametrize("settings", [Released, Map])
@pytest.mark.parametrize(("tokens", "padding"), [(2, 0), (3, 0), (2, 1)])
def test_two_and_three_tokens_teach(states, monkeypatch, tokens, padding, settings):
    plan = plan_of(tokens, padding)
    recorder = recorded(plan, *states, monkeypatch)
    losses = attention_loss(recorder.loss_maps(), plan, settings())
    assert losses["focus"].shape == losses["cover"].shape == (BATCH,)
    for loss in losses.values():
        (gradient,) = torch.autograd.grad(loss.sum(), states[0], retain_graph=True)
        assert gradient.norm() > 1e-3  # of the mean of the tokens' maps: below 1e-6


def test_one_token_teaches_nothing(states, monkeypatch):
    plan = plan_of(1)
    losses = attention_loss(recorded(plan, *states, monkeypatch).loss_maps(), plan, Released())
    (gradient,) = torch.autograd.grad(sum(x.sum() for x in losses.values()), states[0])
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_the_loss_is_the_mean_of_the_tokens_losses(states, monkeypatch):
    plan = plan_of(3, padding=2)
    recorder = recorded(plan, *states, monkeypatch)
    (maps,) = recorder.loss_maps().values()
    assert maps.shape == (BATCH, 1, 5, SIDE, SIDE)
    torch.testing.assert_close(maps.sum(2), torch.ones(BATCH, 1, SIDE, SIDE))
    losses = attention_loss({"double.0": maps}, plan, Released())
    focus = [
        focus_loss(maps[:, :, k], plan.masks, plan.valid, focus_input="prob", tau=0.1)
        for k in range(3)
    ]
    cover = [
        cover_loss(maps[:, :, k], plan.masks, plan.valid, cover_mode="prob", alpha=2.0)
        for k in range(3)
    ]
    torch.testing.assert_close(losses["focus"], torch.stack(focus).mean(0))
    torch.testing.assert_close(losses["cover"], torch.stack(cover).mean(0))


def test_maps_are_the_mean_over_the_tokens_in_every_mode(states, monkeypatch):
    plan = plan_of(3, padding=1)
    (maps,) = recorded(plan, *states, monkeypatch).maps().values()
    torch.testing.assert_close(maps, torch.full_like(maps, 1 / 3))
    recorder = recorded(plan, *states, monkeypatch, norm="full")
    assert recorder.maps()["double.0"] is recorder.loss_maps()["double.0"]


def test_invalid_pairs_and_empty_masks_count_for_nothing(states, monkeypatch):
    plan = plan_of(2)
    double = AttentionPlan(
        plan.token_index.repeat(1, 3, 1),
        torch.cat([plan.masks, torch.zeros_like(plan.masks), plan.masks], 1),
        torch.tensor([[True, True, False]] * BATCH),
        TEXT,
        SIDE * SIDE,
    )
    alone = attention_loss(recorded(plan, *states, monkeypatch).loss_maps(), plan, Released())
    losses = attention_loss(recorded(double, *states, monkeypatch).loss_maps(), double, Released())
    for name in alone:
        torch.testing.assert_close(losses[name], alone[name])
