import copy

import pytest
import torch
from torch import nn

from regionroute.adapters import (
    LoRAMoELinear,
    RouteContext,
    Routing,
    adapter_layers,
    adapter_parameters,
    inject,
    routed,
)


def route(*ids):
    return RouteContext(torch.tensor(ids))


def layer(experts=4, rank=3, alpha=6.0, dtype=torch.float32, **options):
    torch.manual_seed(0)
    made = LoRAMoELinear(nn.Linear(8, 5, dtype=dtype), experts, rank, alpha, **options)
    nn.init.normal_(made.lora_B)
    return made


def reference(made, h, ids):
    """One sample at a time, from explicit matrices."""
    rows = []
    for x, expert in zip(h, ids, strict=True):
        y = x @ made.base.weight.T + made.base.bias
        if expert >= 0:
            delta = made.lora_B[expert].to(h.dtype) @ made.lora_A[expert].to(h.dtype)
            y = y + made.alpha / made.rank * (x @ delta.T)
        rows.append(y)
    return torch.stack(rows)


@pytest.mark.parametrize("shape", [(8,), (7, 8)])
@pytest.mark.parametrize("ids", [(0, 3, 1, 3), (2, 2, 2, 2), (-1, 1, -1, 0), (-1, -1, -1, -1)])
def test_matches_a_loop_over_samples(shape, ids):
    made = layer()
    h = torch.randn(4, *shape)
    with routed(made, route(*ids)):
        torch.testing.assert_close(made(h), reference(made, h, ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ids", [(0, 1), (1, 1)])
def test_half_precision_base_with_fp32_experts(ids):
    made = layer(dtype=torch.bfloat16)
    assert made.lora_A.dtype == made.lora_B.dtype == torch.float32
    h = torch.randn(2, 7, 8).bfloat16()
    with routed(made, route(*ids)):
        out = made(h)
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out, reference(made, h, ids), rtol=0.05, atol=0.1)
    exact = layer()
    with routed(exact, route(*ids)), torch.autocast("cpu", torch.bfloat16):
        cast = exact(h.float())
    assert cast.dtype == torch.bfloat16
    expected = reference(exact, h.float(), ids)
    torch.testing.assert_close(cast.float(), expected, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("autocast", [True, False])
def test_under_autocast_products_are_bfloat16_and_weights_stay_float32(autocast):
    """As the documentation says: digits of the weights beyond bfloat16 make no difference there."""
    made, h = layer(), torch.randn(2, 7, 8)
    rounded = copy.deepcopy(made)
    with torch.no_grad():
        for parameter in rounded.adapter_parameters():
            parameter.copy_(parameter.bfloat16().float())

    def run(module):
        with routed(module, route(0, 1)), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return module(h)

    assert torch.equal(run(made), run(rounded)) == autocast
    run(made).float().sum().backward()
    assert made.lora_B.dtype == made.lora_B.grad.dtype == torch.float32


def test_experts_start_at_the_base_with_pefts_gaussian():
    base = nn.Linear(4096, 5)
    made = LoRAMoELinear(base, 2, rank=4, alpha=4)
    assert made.lora_A.std().item() == pytest.approx(1 / 4, rel=0.02)
    h = torch.randn(2, 3, 4096)
    with routed(made, route(0, 1)):
        assert torch.equal(made(h), base(h))


class EachItsOwn(nn.Module):
    """The same expert for all, said the general way: a row for every sample."""

    num_experts = 4

    def forward(self, context):
        ids = context.expert_ids
        return Routing(ids[:, None], torch.ones(len(ids), 1))


def test_one_expert_for_all_takes_a_shorter_way_to_the_same_result():
    h = torch.randn(3, 7, 8)
    results = []
    for router in (None, EachItsOwn()):
        made = layer(router=router)
        with routed(made, route(2, 2, 2)):
            out = made(h)
        results.append([out, *torch.autograd.grad(out.square().sum(), [made.lora_A, made.lora_B])])
    for fast, general in zip(*results, strict=True):
        torch.testing.assert_close(fast, general, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("ids", [(1, 1, 1), (0, 1, -1), (-1, -1, -1)])
def test_unselected_experts_get_exactly_zero(ids):
    made = layer()
    with routed(made, route(*ids)):
        made(torch.randn(3, 7, 8)).square().sum().backward()
    for weight in (made.lora_A, made.lora_B):
        moved = {e for e in range(4) if (weight.grad[e] != 0).any()}
        assert moved == {i for i in ids if i >= 0}
    assert made.base.weight.grad is None


def test_dropout_touches_only_the_experts_and_only_in_training():
    made = layer(dropout=0.5)
    h = torch.ones(2, 3, 8)
    with routed(made, route(0, 1)):
        noisy = made(h)
        assert not torch.equal(noisy, made(h))
        made.eval()
        torch.testing.assert_close(made(h), reference(made, h, (0, 1)))
    frozen = LoRAMoELinear(nn.Linear(8, 5).eval(), 1, 1, 1.0, dropout=0.5)
    assert not frozen.dropout.training


def test_route_is_required_fits_the_batch_and_nests():
    made = layer()
    h = torch.randn(2, 3, 8)
    with pytest.raises(RuntimeError, match="with routed"):
        made(h)
    with routed(made, route(0, 1)):
        outer = made(h)
        with routed(made, route(3, 3)):
            assert not torch.equal(made(h), outer)
        assert torch.equal(made(h), outer)
        with pytest.raises(ValueError, match="2 samples, the batch has 3"):
            made(torch.randn(3, 3, 8))
        with pytest.raises(ZeroDivisionError), routed(made, route(3, 3)):
            raise ZeroDivisionError
        assert torch.equal(made(h), outer)
    with pytest.raises(RuntimeError, match="with routed"):
        made(h)
    with routed(made, route(0, 4)), pytest.raises(ValueError, match="expert 4"):
        made(h)


@pytest.mark.parametrize("ids", [[[0]], [], [0.5], [-2]])
def test_route_contexts_are_checked(ids):
    with pytest.raises(ValueError, match="expert"):
        RouteContext(torch.tensor(ids))


@pytest.mark.parametrize("sizes", [(0, 4, 4.0), (1, 0, 4.0), (1, 4, 0.0)])
def test_sizes_are_checked(sizes):
    with pytest.raises(ValueError, match="at least 1"):
        LoRAMoELinear(nn.Linear(2, 2), *sizes)


def step(flux, inputs, context):
    flux.zero_grad()
    with routed(flux, context):
        loss = flux(**inputs)[0].square().mean()
        loss.backward()
    return loss, [p.grad.clone() for p in adapter_parameters(flux)]


@pytest.mark.parametrize("ids", [(0, 2, 2), (1, 1, 1)])
def test_gradients_are_the_same_with_checkpointing(adapted, inputs, ids):
    plain_loss, plain = step(adapted, inputs, route(*ids))
    adapted.enable_gradient_checkpointing()
    adapted.train()
    loss, checkpointed = step(adapted, inputs, route(*ids))
    torch.testing.assert_close(loss, plain_loss)
    for a, b in zip(plain, checkpointed, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
        for expert in range(3):
            assert bool((b[expert] != 0).any()) == (expert in ids)
    assert all(p.grad is None for p in adapted.parameters() if not p.requires_grad)


def test_checkpointing_needs_the_route_until_backward_ends(adapted, inputs):
    adapted.enable_gradient_checkpointing()
    adapted.train()
    with routed(adapted, route(0, 1, 2)):
        loss = adapted(**inputs)[0].square().mean()
    with pytest.raises(RuntimeError, match="with routed"):
        loss.backward()


def test_fresh_experts_leave_the_model_as_it_was(flux, inputs):
    before = flux(**inputs)[0]
    names = inject(flux, "regionroute", 2, rank=4, alpha=4)
    assert len(names) == 2 * 4 + 2 * 3
    with routed(flux, route(0, 1, -1)):
        assert torch.equal(flux(**inputs)[0], before)
    trainable = {n for n, p in flux.named_parameters() if p.requires_grad}
    assert trainable == {f"{name}.lora_{side}" for name in names for side in "AB"}
    assert sum(p.numel() for p in adapter_parameters(flux)) == 2 * 4 * 2 * 32 * len(names)


def test_samples_of_a_batch_are_edited_as_if_alone(adapted, inputs):
    per_sample = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep")
    with torch.no_grad(), routed(adapted, route(2, -1, 0)):
        together = adapted(**inputs)[0]
    for b, expert in enumerate((2, -1, 0)):
        alone = {n: x[b : b + 1] if n in per_sample else x for n, x in inputs.items()}
        alone["guidance"] = inputs["guidance"][:1]
        with torch.no_grad(), routed(adapted, route(expert)):
            torch.testing.assert_close(adapted(**alone)[0][0], together[b], rtol=1e-4, atol=1e-5)


def test_wrappers_and_copies_keep_their_routes_apart(adapted, inputs):
    twin = copy.deepcopy(adapted)
    wrapped = nn.ModuleDict({"module": adapted})
    with routed(wrapped, route(0, 1, 2)):
        adapted(**inputs)
        with pytest.raises(RuntimeError, match="with routed"):
            twin(**inputs)
    assert list(adapter_layers(wrapped)) == list(adapter_layers(adapted))
    assert "transformer_blocks.0.attn.to_q" in adapter_layers(wrapped)
    with pytest.raises(ValueError, match="call inject first"):
        adapter_layers(nn.Linear(1, 1))
