import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from regionroute.attention import (
    AttentionPlan,
    attention_loss,
    cover_loss,
    focus_loss,
    mean_map,
    region_map,
)


@dataclass(frozen=True)
class Settings:
    focus_input: str = "ratio"
    tau: float = 1.0
    cover_mode: str = "logratio"
    alpha: float = 1.0
    aggregate: str = "layer"


def batch(samples=3, pairs=2, side=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(samples, pairs, side, side, generator=generator) * 1e-3
    masks = (torch.rand(samples, pairs, side, side, generator=generator) * 2 - 0.7).clamp(0, 1)
    valid = torch.ones(samples, pairs, dtype=torch.bool)
    return maps, masks, valid


def square(side=8, size=4):
    mask = torch.zeros(1, 1, side, side)
    mask[..., :size, :size] = 1
    return mask, torch.ones(1, 1, dtype=torch.bool)


def test_focus_is_zero_for_a_map_proportional_to_the_mask():
    mask, valid = square()
    assert focus_loss(mask * 3e-4, mask, valid).item() == pytest.approx(0, abs=1e-5)


def test_focus_of_a_flat_map_is_log_of_pixels_over_mask():
    mask, valid = square()
    loss = focus_loss(torch.full_like(mask, 1e-4), mask, valid)
    assert loss.item() == pytest.approx(math.log(64 / 16), abs=1e-5)


def test_focus_ignores_the_scale_of_attention():
    maps, masks, valid = batch()
    near = focus_loss(maps, masks, valid)
    torch.testing.assert_close(focus_loss(maps * 1e-3, masks, valid), near, rtol=1e-4, atol=1e-4)


def test_cover_of_flat_and_perfect_maps_and_monotone_between():
    mask, valid = square()
    fraction = 0.25
    flat = torch.full_like(mask, 1e-4)
    assert cover_loss(flat, mask, valid).item() == pytest.approx(math.log(2), abs=1e-5)
    perfect = cover_loss(mask * 1e-4, mask, valid).item()
    assert perfect == pytest.approx(fraction * math.log(1 + fraction), abs=1e-4)
    steps = [
        cover_loss(torch.lerp(flat, mask * 4e-4, share), mask, valid).item()
        for share in torch.linspace(0, 1, 9)
    ]
    assert steps == sorted(steps, reverse=True)


@pytest.mark.parametrize("loss", [focus_loss, cover_loss])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [0.0, 1e-30, 1.0])
def test_finite_with_finite_gradients(loss, dtype, value):
    mask, valid = square()
    maps = torch.full(mask.shape, value, dtype=dtype, requires_grad=True)
    result = loss(maps, mask, valid)
    result.sum().backward()
    assert result.dtype == torch.float32
    assert result.isfinite().all()
    assert maps.grad.isfinite().all()


def naive_focus(attention, mask, mode, tau):
    scores = (attention.double() + 1e-12).log() if mode == "ratio" else attention.double()
    weights = (scores / tau).exp()
    total = 0.0
    for q, p in zip(mask.double().flatten(), (weights / weights.sum()).flatten(), strict=True):
        share = (q / mask.double().sum()).item()
        total += share * math.log(share / p.item()) if share > 0 else 0.0
    return total


def naive_cover(attention, mask, mode, alpha):
    logits = attention.double()
    if mode == "logratio":
        logits = ((logits + 1e-12) / (logits.mean() + 1e-12)).log()
    total = 0.0
    for m, x in zip(mask.double().flatten(), logits.flatten(), strict=True):
        p = torch.sigmoid(alpha * x).item()
        total -= m.item() * math.log(p) + (1 - m.item()) * math.log(1 - p)
    return total / mask.numel()


@pytest.mark.parametrize(
    ("focus_input", "tau", "cover_mode", "alpha"),
    [("ratio", 1.0, "logratio", 1.0), ("prob", 0.1, "prob", 2.0), ("ratio", 0.5, "logratio", 3.0)],
)
def test_batched_losses_match_loops(focus_input, tau, cover_mode, alpha):
    maps, masks, valid = batch()
    valid[0, 1] = False
    masks[1, 0] = 0  # empty: the object is dropped although the flag says valid
    valid[2] = False
    focus = focus_loss(maps, masks, valid, focus_input=focus_input, tau=tau)
    cover = cover_loss(maps, masks, valid, cover_mode=cover_mode, alpha=alpha)
    used = {0: [0], 1: [1], 2: []}
    for b, pairs in used.items():
        expected = [naive_focus(maps[b, s], masks[b, s], focus_input, tau) for s in pairs] or [0]
        assert focus[b].item() == pytest.approx(sum(expected) / len(expected), rel=1e-4)
        expected = [naive_cover(maps[b, s], masks[b, s], cover_mode, alpha) for s in pairs] or [0]
        assert cover[b].item() == pytest.approx(sum(expected) / len(expected), rel=1e-4)


def test_permuting_the_batch_permutes_the_losses():
    maps, masks, valid = batch()
    valid[1, 0] = False
    order = torch.tensor([2, 0, 1])
    for loss in (focus_loss, cover_loss):
        assert torch.equal(
            loss(maps[order], masks[order], valid[order]), loss(maps, masks, valid)[order]
        )


def test_another_samples_mask_never_changes_this_samples_gradient():
    maps, masks, valid = batch()
    maps.requires_grad_()
    changed = masks.clone()
    changed[1] = 1 - changed[1]
    for loss in (focus_loss, cover_loss):
        (before,) = torch.autograd.grad(loss(maps, masks, valid).sum(), maps)
        (after,) = torch.autograd.grad(loss(maps, changed, valid).sum(), maps)
        assert torch.equal(before[[0, 2]], after[[0, 2]])
        assert not torch.equal(before[1], after[1])


def test_the_losses_pull_attention_into_the_mask():
    mask, valid = square()
    for loss in (focus_loss, cover_loss):
        logits = torch.zeros_like(mask, requires_grad=True)
        loss(logits.exp() * 1e-4, mask, valid).sum().backward()
        assert (logits.grad[mask > 0] < 0).all()
        assert (logits.grad[mask == 0] > 0).all()


def plan_of(masks, valid):
    tokens = torch.zeros(*valid.shape, 1, dtype=torch.long)
    return AttentionPlan(tokens, masks, valid, text_len=4, image_len=masks[0, 0].numel())


def test_attention_loss_averages_layers_or_maps():
    first, masks, valid = batch(seed=1)
    second, _, _ = batch(seed=2)
    plan = plan_of(masks, valid)
    maps = {"double.0": first, "single.0": second}
    by_layer = attention_loss(maps, plan, Settings())
    torch.testing.assert_close(
        by_layer["focus"], (focus_loss(first, masks, valid) + focus_loss(second, masks, valid)) / 2
    )
    torch.testing.assert_close(
        by_layer["cover"], (cover_loss(first, masks, valid) + cover_loss(second, masks, valid)) / 2
    )
    by_map = attention_loss(maps, plan, Settings(aggregate="map", focus_input="prob", tau=0.1))
    torch.testing.assert_close(
        by_map["focus"],
        focus_loss(mean_map(maps), masks, valid, focus_input="prob", tau=0.1),
    )


def test_region_map_is_half_at_covers_boundary():
    maps, _, _ = batch()
    region = region_map(maps)
    assert torch.equal(region > 0.5, maps > maps.mean((-2, -1), keepdim=True))
    torch.testing.assert_close(region_map(maps * 1e-6), region)
    assert (region_map(torch.zeros(2, 2)) == 0.5).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda m, k, v: focus_loss(m, k, v, focus_input="log"),
        lambda m, k, v: cover_loss(m, k, v, cover_mode="ratio"),
        lambda m, k, v: attention_loss({"double.0": m}, plan_of(k, v), Settings(aggregate="all")),
        lambda m, k, v: attention_loss({}, plan_of(k, v), Settings()),
    ],
)
def test_unknown_modes(call):
    with pytest.raises(ValueError, match=r"must be|no attention maps"):
        call(*batch())


def test_published_modes_leave_the_background_at_log_two():
    mask, valid = square()
    attention = mask * 1e-4
    loss = F.softplus(torch.zeros(())).item()
    assert cover_loss(attention, mask, valid, cover_mode="prob", alpha=2.0).item() >= 0.99 * loss
