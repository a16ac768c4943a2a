"""Routers by themselves, and the layer under each of them against explicit matrices."""

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from regionroute.adapters import (
    FixedRouter,
    LoRAMoELinear,
    RouteContext,
    SimilarityRouter,
    StyleIdRouter,
    adapter_layers,
    adapter_parameters,
    inject,
    routed,
    routings,
)

WIDTH, EXPERTS = 6, 4  # of the style embedding


def layer(router=None, experts=EXPERTS, rank=3, alpha=6.0, shared=0, dtype=torch.float32):
    torch.manual_seed(0)
    base = nn.Linear(8, 5, dtype=dtype)
    made = LoRAMoELinear(base, experts, rank, alpha, router=router, shared_rank=shared)
    nn.init.normal_(made.lora_B)
    if shared:
        nn.init.normal_(made.shared_B)
    return made


def similarity(top_k=2, **options):
    router = SimilarityRouter(WIDTH, EXPERTS, top_k, **options)
    torch.manual_seed(4)
    nn.init.normal_(router.gate.weight)
    return router


def exact_gate(logits, top_k, **options):
    """A router whose gate gives these logits for the style embedding (1, 0, …)."""
    router = SimilarityRouter(WIDTH, len(logits), top_k, normalize=False, **options)
    with torch.no_grad():
        router.gate.weight.zero_()
        router.gate.weight[:, 0] = torch.tensor(logits)
    return router, RouteContext(style_emb=torch.eye(WIDTH)[:1])


def reference(made, h, chosen, shared=1.0):
    """One sample at a time: `chosen` lists each sample's (expert, weight) pairs."""
    rows = []
    for x, pairs in zip(h.double(), chosen, strict=True):
        delta = torch.zeros(5, 8, dtype=torch.double)
        for expert, weight in pairs:
            delta = delta + weight * made.lora_B[expert].double() @ made.lora_A[expert].double()
        if made.shared_rank:
            delta = delta + shared * made.shared_B.double() @ made.shared_A.double()
        y = x @ made.base.weight.double().T + made.base.bias.double()
        rows.append(y + made.alpha / made.rank * (x @ delta.T))
    return torch.stack(rows).to(h.dtype)


def by_hand(router, style_emb):
    """(expert, weight) pairs of every sample by the formula."""
    chosen = []
    for e in style_emb.double():
        normal = (e - e.mean()) / (e.var(correction=0) + 1e-5).sqrt()
        logits = router.gate.weight.double() @ normal
        best = logits.argsort(descending=True)[: router.top_k]
        weights = logits[best].exp() / logits[best].exp().sum()
        chosen.append(list(zip(best.tolist(), weights.tolist(), strict=True)))
    return chosen


def test_closed_form():
    router, context = exact_gate([2.0, 1.0, 0.0, -1.0], 2)
    routing = router(context)
    assert routing.index.tolist() == [[0, 1]]
    torch.testing.assert_close(routing.weight, torch.tensor([[0.7311, 0.2689]]), atol=1e-4, rtol=0)
    assert routing.logits.tolist() == [[2.0, 1.0, 0.0, -1.0]]
    moved, context = exact_gate([7.0, 6.0, 5.0, 4.0], 2)
    torch.testing.assert_close(moved(context).weight, routing.weight)
    full, context = exact_gate([2.0, 1.0, 0.0, -1.0], 4)
    torch.testing.assert_close(
        full(context).weight, torch.tensor([[2.0, 1.0, 0.0, -1.0]]).softmax(-1)
    )
    single, context = exact_gate([2.0, 1.0, 0.0, -1.0], 1)
    torch.testing.assert_close(single(context).weight, torch.tensor([[0.6439]]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(8,), (7, 8)])
@pytest.mark.parametrize("shared", [0, 2])
@pytest.mark.parametrize("top_k", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grad", [True, False])
def test_similarity_matches_a_dense_reference(shape, shared, top_k, dtype, grad):
    made = layer(similarity(top_k), shared=shared, dtype=dtype)
    style_emb, h = torch.randn(3, WIDTH), torch.randn(3, *shape).to(dtype)
    chosen = by_hand(made.router, style_emb)
    assert len({experts[0][0] for experts in chosen}) > 1  # the batch mixes routes
    exact = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.03, "atol": 0.1}
    with torch.set_grad_enabled(grad), routed(made, RouteContext(style_emb=style_emb)):
        out = made(h)
        assert out.dtype == dtype
        torch.testing.assert_close(out, reference(made, h, chosen), **exact)
    alike = style_emb[:1].expand(3, -1)
    with torch.set_grad_enabled(grad), routed(made, RouteContext(style_emb=alike)):
        torch.testing.assert_close(made(h), reference(made, h, chosen[:1] * 3), **exact)


def test_a_saturated_gate_is_a_style_id():
    h = torch.randn(4, 7, 8)
    ids = torch.tensor([2, 0, 3, 2])
    by_id, results = layer(), []
    with routed(by_id, RouteContext(ids)):
        expected = by_id(h)
    for top_k in (1, 2):
        router = SimilarityRouter(EXPERTS, EXPERTS, top_k, normalize=False)
        nn.init.eye_(router.gate.weight).data.mul_(200)
        made = layer(router)
        with routed(made, RouteContext(style_emb=F.one_hot(ids).float())):
            results.append(made(h))
    for out in results:
        torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("router", [None, similarity(), similarity(1)])
def test_zero_b_is_the_base_bit_for_bit(router):
    for dtype in (torch.float32, torch.bfloat16):
        base = nn.Linear(8, 5, dtype=dtype)
        made = LoRAMoELinear(base, EXPERTS, 32, 16.0, router=router, shared_rank=3)
        h = torch.randn(3, 7, 8).to(dtype)
        context = RouteContext(torch.tensor([0, 1, 1]), torch.randn(3, WIDTH))
        with routed(made, context):
            assert torch.equal(made(h), base(h))
            nn.init.ones_(made.lora_B)  # alpha / r is a fraction, not 16 // 32 = 0
            assert not torch.equal(made(h), base(h))


def test_the_shared_expert_does_not_depend_on_the_gate():
    made = layer(similarity(), shared=2)
    nn.init.zeros_(made.lora_B)
    h = torch.randn(2, 7, 8)
    outputs = []
    for seed in range(3):
        torch.manual_seed(seed)
        with routed(made, RouteContext(style_emb=torch.randn(2, WIDTH))):
            outputs.append(made(h))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    torch.testing.assert_close(outputs[0], reference(made, h, [[], []]), rtol=1e-5, atol=1e-5)
    assert not torch.equal(outputs[0], made.base(h))


def test_released_routing_shifts_the_weights():
    router, context = exact_gate([2.0, 1.0, 0.0, -1.0], 2, compat="released")
    made = layer(router, shared=2)
    h = torch.randn(1, 7, 8)
    first, second = torch.tensor([2.0, 1.0]).softmax(0).tolist()
    with routed(made, context):
        released = reference(made, h, [[(0, second), (1, 0.0)]], shared=first)
        torch.testing.assert_close(made(h), released, rtol=1e-5, atol=1e-5)
        made(h).sum().backward()  # the released file multiplies in place and cannot train
    assert router.gate.weight.grad.abs().max() > 0
    with pytest.raises(ValueError, match="shared expert its weight"):
        layer(similarity(compat="released"))


def gradients(made, h, context):
    made.zero_grad()
    with routed(made, context):
        made(h).square().sum().backward()
    return made


def test_unselected_experts_and_untaught_gates_get_exactly_zero():
    style_emb, h = torch.randn(2, WIDTH), torch.randn(2, 7, 8)
    context = RouteContext(style_emb=style_emb)
    made = gradients(layer(similarity(), experts=EXPERTS), h, context)
    used = {expert for pairs in by_hand(made.router, style_emb) for expert, _ in pairs}
    assert 0 < len(used) < EXPERTS
    for weight in (made.lora_A, made.lora_B):
        assert {e for e in range(EXPERTS) if (weight.grad[e] != 0).any()} == used
    gate = made.router.gate.weight.grad
    assert {e for e in range(EXPERTS) if (gate[e] != 0).any()} == used
    # While B is zero the weights change nothing.
    fresh = layer(similarity())
    nn.init.zeros_(fresh.lora_B)
    assert (gradients(fresh, h, context).router.gate.weight.grad == 0).all()


def test_with_one_expert_at_a_time_the_gate_learns_only_from_the_full_softmax():
    style_emb, h = torch.randn(2, WIDTH), torch.randn(2, 7, 8)
    context = RouteContext(style_emb=style_emb)
    made = gradients(layer(similarity(1)), h, context)
    assert (made.router.gate.weight.grad != 0).any(1).all()  # every logit counts
    # Over the selected logit alone the weight is 1 whatever the gate says.
    logits = made.router(context).logits
    assert torch.equal(logits.topk(1)[0].softmax(-1), torch.ones(2, 1))


def test_a_gradient_reaches_the_style_encoder():
    style_emb = torch.randn(2, WIDTH)[:1].repeat(2, 1).requires_grad_()
    gradients(layer(similarity()), torch.randn(2, 7, 8), RouteContext(style_emb=style_emb))
    assert (style_emb.grad != 0).any(1).all()


def peft_layer(made):
    """PEFT's LoRA with the weights of expert 0."""
    config = LoraConfig(r=made.rank, lora_alpha=made.alpha, target_modules=["0"])
    stock = nn.Sequential(nn.Linear(8, 5))
    stock[0].load_state_dict(made.base.state_dict())
    stock = inject_adapter_in_model(config, stock)
    stock[0].lora_A["default"].weight.data = made.lora_A.data[0].clone()
    stock[0].lora_B["default"].weight.data = made.lora_B.data[0].clone()
    return stock


def test_one_expert_is_a_peft_lora():
    made = layer(experts=1)
    stock = peft_layer(made)
    ours, theirs = (torch.randn(2, 7, 8, generator=torch.Generator().manual_seed(1)) for _ in "ab")
    ours.requires_grad_(), theirs.requires_grad_()
    with routed(made, RouteContext(torch.tensor([0, 0]))):
        out = made(ours)
        out.square().sum().backward()
    expected = stock(theirs)
    expected.square().sum().backward()
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)
    lora = stock[0]
    torch.testing.assert_close(made.lora_A.grad[0], lora.lora_A["default"].weight.grad)
    torch.testing.assert_close(made.lora_B.grad[0], lora.lora_B["default"].weight.grad)
    assert made.base.weight.grad is None


@pytest.mark.parametrize("shared", [0, 2])
@pytest.mark.parametrize("grad", [True, False])
def test_blends(shared, grad):
    made = layer(shared=shared)
    h = torch.randn(3, 7, 8)
    one = FixedRouter(torch.tensor([0.0, 0.6, 0.0, 0.4]))
    each = FixedRouter(torch.tensor([[0.0, 0.6, 0.0, 0.4], [1, 0, 0, 0], [0, 0, 0, 0.0]]))
    mixed = [[(1, 0.6), (3, 0.4)], [(0, 1.0)], []]
    with torch.set_grad_enabled(grad):
        with routed(made, RouteContext(router=one)):
            expected = reference(made, h, [mixed[0]] * 3)
            torch.testing.assert_close(made(h), expected, rtol=1e-5, atol=1e-5)
            made(h[:2])  # holds for any batch
        with routed(made, RouteContext(router=each)):
            torch.testing.assert_close(made(h), reference(made, h, mixed), rtol=1e-5, atol=1e-5)
            with pytest.raises(ValueError, match="3 samples, the batch has 2"):
                made(h[:2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_closed_gates_are_the_base_bit_for_bit(dtype):
    made = layer(dtype=dtype)
    h = torch.randn(2, 7, 8).to(dtype)
    closed = [torch.zeros(EXPERTS), torch.zeros(2, EXPERTS)]
    closed.append(torch.zeros(2, EXPERTS).requires_grad_())
    for weights in closed:
        for grad in (True, False):
            context = RouteContext(router=FixedRouter(weights))
            with torch.set_grad_enabled(grad), routed(made, context):
                assert torch.equal(made(h), made.base(h))


def test_gates_can_be_trained():
    made = layer()
    h, weights = torch.randn(2, 7, 8), torch.zeros(2, EXPERTS).requires_grad_()
    with routed(made, RouteContext(router=FixedRouter(weights))):
        made(h).square().sum().backward()
    assert (weights.grad != 0).all()


def learned(flux, **options):
    generator = torch.Generator().manual_seed(7)
    inject(
        flux, "regionroute", EXPERTS, 4, 4, shared_rank=2, generator=generator,
        router=lambda: SimilarityRouter(WIDTH, EXPERTS, 2, generator=generator, **options),
    )  # fmt: skip
    for made in adapter_layers(flux).values():
        nn.init.normal_(made.lora_B, std=0.1)
        nn.init.normal_(made.shared_B, std=0.1)
    return flux


def test_every_layer_has_a_gate_of_its_own_and_checkpointing_changes_nothing(make_flux, inputs):
    context = RouteContext(style_emb=torch.randn(3, WIDTH))
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(3)
        flux = learned(make_flux()).train()
        if checkpointing:
            flux.enable_gradient_checkpointing()
        with routed(flux, context):
            loss = flux(**inputs)[0].square().mean()
            found = routings(flux)
            loss.backward()
            assert list(found) == list(adapter_layers(flux))
            assert all(routings(flux)[name] is routing for name, routing in found.items())
        assert routings(flux) == {}
        results.append([loss, *[p.grad for p in adapter_parameters(flux)]])
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-5, atol=1e-7)
    gates = [made.router.gate.weight for made in adapter_layers(flux).values()]
    assert len({gate[0, 0].item() for gate in gates}) == len(gates)
    assert all((gate.grad != 0).any() for gate in gates)


def test_without_gradients_stacks_are_remembered_until_anything_changes():
    made = layer(similarity(), shared=2)
    calls = []
    made.router.register_forward_hook(lambda *args: calls.append(1))
    h, context = torch.randn(2, 7, 8), RouteContext(style_emb=torch.randn(2, WIDTH))
    with torch.no_grad(), routed(made, context):
        first = made(h)
        assert torch.equal(made(h), first)
        assert len(calls) == 1
        for changed in made.adapter_parameters():
            before = made(h)
            changed.mul_(1.5)
            assert not torch.equal(made(h), before)
        with routed(made, RouteContext(style_emb=torch.randn(2, WIDTH))):
            assert not torch.equal(made(h), before)
        after, count = made(h), len(calls)
        assert torch.equal(made(h), after)
        assert len(calls) == count
        made.to(torch.float64)
        assert made(h.double()).dtype == torch.float64
    with routed(made.float(), context):
        made(h)
        made(h)
    assert len(calls) == count + 3


def test_autocast_without_gradients():
    made = layer(similarity(), shared=2)
    h, context = torch.randn(2, 7, 8), RouteContext(style_emb=torch.randn(2, WIDTH))
    with torch.no_grad(), routed(made, context):
        exact = made(h)
        with torch.autocast("cpu", torch.bfloat16):
            cast = made(h)
    assert cast.dtype == torch.bfloat16
    torch.testing.assert_close(cast.float(), exact, rtol=0.05, atol=0.1)


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (RouteContext(torch.tensor([0, 1])), "the route needs style_emb"),
        (RouteContext(style_emb=torch.ones(2, 5)), "width 5, the gate 6"),
        (RouteContext(style_emb=torch.ones(3, WIDTH)), "3 samples, the batch has 2"),
        (RouteContext(router=StyleIdRouter(EXPERTS)), "the route needs expert_ids"),
        (RouteContext(router=FixedRouter(torch.ones(3))), "among 3 experts, there are 4"),
    ],
)
def test_routes_that_do_not_fit_are_refused(context, message):
    made = layer(similarity())
    with routed(made, context), pytest.raises(ValueError, match=message):
        made(torch.randn(2, 7, 8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RouteContext(), "needs expert_ids, style_emb or a router"),
        (lambda: RouteContext(torch.tensor([0]), torch.ones(2, 3)), r"\[1, 2\] samples"),
        (lambda: RouteContext(style_emb=torch.ones(3)), r"\[B,Ds\], got torch.float32 \[3\]"),
        (lambda: RouteContext(style_emb=torch.ones(2, 3).long()), "must be a float matrix"),
        (lambda: FixedRouter(torch.ones(1, 1, 1, 1)), r"\[E\] or \[B,E\]"),
        (lambda: FixedRouter(torch.tensor([torch.nan])), "finite"),
        (lambda: SimilarityRouter(4, 4, 5), "top_k must be 1 to 4"),
        (lambda: SimilarityRouter(4, 4, 2, compat="old"), '"fixed" or "released"'),
    ],
)
def test_arguments_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_compiled_layers_give_the_same():
    for router, context in (
        (similarity(), RouteContext(style_emb=torch.randn(2, WIDTH))),
        (None, RouteContext(torch.tensor([1, -1]))),
        (None, RouteContext(router=FixedRouter(torch.rand(2, EXPERTS)))),
    ):
        made = layer(router, shared=2)
        compiled = torch.compile(made, backend="eager", fullgraph=True)
        h = torch.randn(2, 7, 8)
        with routed(made, context):
            torch.testing.assert_close(compiled(h), made(h))
            with torch.no_grad():
                torch.testing.assert_close(compiled(h), made(h))
