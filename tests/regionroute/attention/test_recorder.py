import contextlib

import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor

from regionroute.attention import (
    AttentionPlan,
    AttentionRecorder,
    attention_loss,
    cover_loss,
    dispatch,
    focus_loss,
)
from regionroute.errors import UserError

TEXT, SIDE, BATCH = 6, 4, 3
IMAGE = SIDE * SIDE
LAYERS = ["double.0", "double.1", "single.0", "single.1"]
TOKENS = [[[1, 2], [4, -1]], [[3, -1], [-1, -1]], [[0, 5], [2, 3]]]


@pytest.fixture
def plan():
    generator = torch.Generator().manual_seed(2)
    masks = torch.rand(BATCH, 2, SIDE, SIDE, generator=generator)
    valid = torch.tensor([[True, True], [True, False], [True, True]])
    return AttentionPlan(torch.tensor(TOKENS), masks, valid, TEXT, IMAGE)


@contextlib.contextmanager
def spied_qkv(monkeypatch):
    """Collects query, key [B,H,N,D] that the stock processors hand to PyTorch's attention."""
    seen = []
    stock = torch.nn.functional.scaled_dot_product_attention

    def spy(query, key, value, **options):
        seen.append((query, key))
        return stock(query, key, value, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
        yield seen


def explicit_maps(seen, rows, bias=0.0):
    """Softmax over all keys, then the mean over heads and tokens, one pair at a time."""
    maps = []
    for query, key in seen:
        attention = (query @ key.mT / query.shape[-1] ** 0.5 + bias).softmax(-1)  # [B,H,N,N]
        layer = torch.zeros(BATCH, 2, SIDE, SIDE)
        for b in range(BATCH):
            for s in range(2):
                tokens = [t for t in TOKENS[b][s] if t >= 0]
                if tokens:
                    layer[b, s] = attention[b, :, rows][..., tokens].mean((0, 2)).view(SIDE, SIDE)
        maps.append(layer)
    return maps


@pytest.mark.parametrize(("queries", "start"), [("target", TEXT), ("context", TEXT + IMAGE)])
def test_maps_equal_the_softmax_of_what_the_stock_model_computes(
    flux, inputs, plan, monkeypatch, queries, start
):
    with spied_qkv(monkeypatch) as seen:
        stock = flux(**inputs)[0]
    recorder = AttentionRecorder(queries=queries)
    with recorder.recording(flux, plan):
        out = flux(**inputs)[0]
    assert torch.equal(out, stock)
    maps = recorder.maps()
    assert list(maps) == LAYERS
    for found, expected in zip(
        maps.values(), explicit_maps(seen, slice(start, start + IMAGE)), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-8)


def test_both_queries_give_two_maps_a_block(flux, inputs, plan):
    separate = {}
    for queries in ("target", "context", "both"):
        recorder = AttentionRecorder(layers=["single.0"], queries=queries)
        with recorder.recording(flux, plan):
            flux(**inputs)
        separate[queries] = recorder.maps()
    assert list(separate["both"]) == ["single.0.target", "single.0.context"]
    for queries in ("target", "context"):
        torch.testing.assert_close(
            separate["both"][f"single.0.{queries}"], separate[queries]["single.0"]
        )


def test_heads_and_tokens_of_a_reading_are_those_of_the_softmax(flux, inputs, plan, monkeypatch):
    with spied_qkv(monkeypatch) as seen:
        flux(**inputs)
    layers = ["single.0.context:1", "double.1:0", "double.1", "double.1:0,1", "double.1.context:1"]
    recorder = AttentionRecorder(layers=layers)
    with recorder.recording(flux, plan):
        flux(**inputs)
    maps = recorder.maps()
    assert list(maps) == [*layers[1:], layers[0]]  # blocks in the model's order
    target, context = slice(TEXT, TEXT + IMAGE), slice(TEXT + IMAGE, None)

    def head(number, block, rows):
        query, key = seen[LAYERS.index(block)]
        return explicit_maps([(query[:, [number]], key[:, [number]])], rows)[0]

    for name, expected in {
        "double.1:0": head(0, "double.1", target),
        "double.1.context:1": head(1, "double.1", context),
        "single.0.context:1": head(1, "single.0", context),
    }.items():
        torch.testing.assert_close(maps[name], expected, rtol=1e-4, atol=1e-8)
    assert torch.equal(maps["double.1:0,1"], maps["double.1"])  # these are all its heads
    assert not torch.allclose(maps["double.1:0"], maps["double.1"])


@pytest.mark.parametrize("kind", ["bool", "additive", "keys"])
def test_under_an_attention_mask_the_output_is_the_stock_models(
    flux, inputs, plan, monkeypatch, kind
):
    generator = torch.Generator().manual_seed(4)
    tokens = TEXT + 2 * IMAGE
    shape = (BATCH, tokens) if kind == "keys" else (BATCH, 1, tokens, tokens)
    mask = torch.rand(shape, generator=generator) < 0.7
    mask[..., 0] = True
    if kind == "additive":
        mask = torch.where(mask, torch.randn(shape, generator=generator), -torch.inf)
    inputs["joint_attention_kwargs"] = {"attention_mask": mask}
    with spied_qkv(monkeypatch) as seen:
        stock = flux(**inputs)[0]
    recorder = AttentionRecorder()
    with recorder.recording(flux, plan):
        torch.testing.assert_close(flux(**inputs)[0], stock)
    mask = mask[:, None, None] if kind == "keys" else mask
    bias = mask if kind == "additive" else torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    rows = slice(TEXT, TEXT + IMAGE)
    for found, expected in zip(
        recorder.maps().values(), explicit_maps(seen, rows, bias), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_only_chosen_blocks_are_touched_and_all_are_restored(flux, inputs, plan):
    before = [flux.attn_processors[name] for name in flux.attn_processors]
    recorder = AttentionRecorder(layers=["single.1", "double.1"])
    with contextlib.suppress(ZeroDivisionError), recorder.recording(flux, plan):
        inside = [type(p) is FluxAttnProcessor for p in flux.attn_processors.values()]
        assert inside == [True, False, True, False]
        flux(**inputs)
        assert list(recorder.maps()) == ["double.1", "single.1"]
        raise ZeroDivisionError
    after = [flux.attn_processors[name] for name in flux.attn_processors]
    assert all(a is b for a, b in zip(before, after, strict=True))
    assert not flux._forward_hooks
    assert not flux._forward_pre_hooks


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # stock, autocast
def test_output_is_bit_identical_in_bf16_and_under_autocast(flux, inputs, plan):
    recorder = AttentionRecorder()

    def compare(**inputs):
        stock = flux(**inputs)[0]
        with recorder.recording(flux, plan):
            recorded = flux(**inputs)[0]
        assert torch.equal(recorded, stock)
        return recorder.maps()["single.1"]

    exact = compare(**inputs)
    with torch.autocast("cpu", torch.bfloat16):
        cast = compare(**inputs)
    assert cast.dtype == torch.float32
    torch.testing.assert_close(cast, exact, rtol=0.1, atol=0)
    flux.to(torch.bfloat16)
    half = {
        name: x.to(torch.bfloat16)
        if torch.is_tensor(x) and name not in ("img_ids", "txt_ids")
        else x
        for name, x in inputs.items()
    }
    torch.testing.assert_close(compare(**half), exact, rtol=0.2, atol=0)


def loss_and_gradients(flux, inputs, plan, recorder):
    weights = [
        p for n, p in flux.named_parameters() if n.endswith(("attn.to_q.weight", "to_k.weight"))
    ]
    for weight in weights:
        weight.requires_grad_()
    with recorder.recording(flux, plan):
        out = flux(**inputs)[0]
        maps = recorder.maps()
        attention = torch.stack(list(maps.values())).mean(0)
        loss = (
            out.square().mean()
            + (
                focus_loss(attention, plan.masks, plan.valid)
                + cover_loss(attention, plan.masks, plan.valid)
            ).sum()
        )
        gradients = torch.autograd.grad(loss, weights)
        after = recorder.maps()
    assert all(maps[name] is after[name] for name in maps)  # the recomputation kept its hands off
    return loss, gradients


@pytest.mark.parametrize("options", [{}, {"queries": "both", "norm": "text"}])
@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_are_the_same_with_checkpointing(flux, inputs, plan, options, autocast):
    recorder = AttentionRecorder(**options)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        plain_loss, plain = loss_and_gradients(flux, inputs, plan, recorder)
        flux.enable_gradient_checkpointing()
        flux.train()
        loss, checkpointed = loss_and_gradients(flux, inputs, plan, recorder)
    torch.testing.assert_close(loss, plain_loss)
    for a, b in zip(plain, checkpointed, strict=True):
        assert a.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * a.abs().max().item())


def test_kernels_may_be_tried_inside_a_checkpointed_block(flux, inputs, plan):
    dispatch._verify.cache_clear()  # as in the first step of a training run
    flux.enable_gradient_checkpointing()
    flux.train()
    loss_and_gradients(flux, inputs, plan, AttentionRecorder())


def test_reentrant_checkpointing_is_refused(flux, inputs, plan):
    from torch.utils.checkpoint import checkpoint

    flux.enable_gradient_checkpointing(
        lambda block, *args: checkpoint(block, *args, use_reentrant=True)
    )
    flux.train()
    inputs["hidden_states"].requires_grad_()
    recorder = AttentionRecorder()
    with recorder.recording(flux, plan):
        out = flux(**inputs)[0]
        with pytest.raises(RuntimeError, match="use_reentrant=False"):
            out.sum().backward()


class Wrapper(torch.nn.Module):
    def __init__(self, transformer):
        super().__init__()
        self.module = transformer

    def forward(self, **inputs):
        return self.module(**inputs)


def test_records_inside_wrappers_and_keeps_the_latest_forward(flux, inputs, plan):
    recorder = AttentionRecorder(layers=["double.1"])
    wrapped = Wrapper(flux)
    with torch.no_grad(), recorder.recording(wrapped, plan):
        wrapped(**inputs)
        first = recorder.maps()["double.1"]
        wrapped(**inputs)
        assert torch.equal(recorder.maps()["double.1"], first)
        wrapped(**{**inputs, "timestep": inputs["timestep"] / 2})
        assert not torch.equal(recorder.maps()["double.1"], first)


def test_a_samples_map_depends_on_its_own_words_only(flux, inputs, plan):
    def sample_gradients(token_index, masks):
        hidden = inputs["hidden_states"].clone().requires_grad_()
        recorder = AttentionRecorder()
        changed = AttentionPlan(token_index, masks, plan.valid, TEXT, IMAGE)
        with recorder.recording(flux, changed):
            flux(**{**inputs, "hidden_states": hidden})
            losses = attention_loss(recorder.maps(), changed, Settings())
            (gradient,) = torch.autograd.grad(losses["focus"].sum() + losses["cover"].sum(), hidden)
        return losses["focus"].detach(), gradient

    focus, gradient = sample_gradients(plan.token_index, plan.masks)
    tokens, masks = plan.token_index.clone(), plan.masks.clone()
    tokens[1, 0, 0] = 5
    masks[1] = 1 - masks[1]
    other_focus, other = sample_gradients(tokens, masks)
    assert torch.equal(focus[[0, 2]], other_focus[[0, 2]])
    assert torch.equal(gradient[[0, 2]], other[[0, 2]])
    assert not torch.equal(gradient[1], other[1])


class Settings:
    focus_input, tau, cover_mode, alpha, aggregate = "ratio", 1.0, "logratio", 1.0, "layer"


def test_one_word_style_teaches_except_in_the_published_scheme(flux, inputs, plan):
    single = AttentionPlan(
        plan.token_index[:, :1, :1], plan.masks[:, :1], plan.valid[:, :1], TEXT, IMAGE
    )
    hidden = inputs["hidden_states"].requires_grad_()
    for norm, silent in (("full", False), ("text", False), ("selected", True)):
        recorder = AttentionRecorder(norm=norm)
        with recorder.recording(flux, single):
            flux(**inputs)
            losses = attention_loss(recorder.maps(), single, Settings())
            (gradient,) = torch.autograd.grad(losses["focus"].sum() + losses["cover"].sum(), hidden)
        assert bool((gradient == 0).all()) == silent


def test_mistakes_are_named(flux, inputs, plan):
    with pytest.raises(UserError, match=r'supervision.layers: .* the nearest is "double.1"'):
        AttentionRecorder(layers=["doubles.1"]).recording(flux, plan).__enter__()
    with pytest.raises(UserError, match=r'experts.json: "double.1:2": the heads are 0 to 1'):
        AttentionRecorder(["double.1:2"], source="experts.json").sites(Wrapper(flux))
    with pytest.raises(UserError, match="not of the form"):
        AttentionRecorder(layers=["double.1:x"])
    with pytest.raises(ValueError, match="target"):
        AttentionRecorder(queries="image")
    with pytest.raises(ValueError, match="no FluxTransformer2DModel"):
        AttentionRecorder().recording(torch.nn.Linear(1, 1), plan).__enter__()
    recorder = AttentionRecorder()
    with pytest.raises(RuntimeError, match="no forward"):
        recorder.maps()
    with recorder.recording(flux, plan), pytest.raises(RuntimeError, match="already"):
        recorder.recording(flux, plan).__enter__()
    short = {**inputs, "hidden_states": inputs["hidden_states"][:, :IMAGE]}
    short["img_ids"] = inputs["img_ids"][:IMAGE]
    context = AttentionRecorder(queries="context")
    with context.recording(flux, plan), pytest.raises(ValueError, match="22 tokens"):
        flux(**short)
    flux.fuse_qkv_projections()
    with pytest.raises(ValueError, match="fused"):
        recorder.recording(flux, plan).__enter__()


def test_a_plan_checks_its_shapes(plan):
    pieces = (plan.token_index, plan.masks, plan.valid)
    for index, masks, valid, text, image, message in (
        (pieces[0][0], *pieces[1:], TEXT, IMAGE, "needs token_index"),
        (pieces[0], pieces[1][:, :1], pieces[2], TEXT, IMAGE, "agree in B and S"),
        (*pieces, TEXT, IMAGE + 1, "4x4 grid"),
        (*pieces, TEXT - 1, IMAGE, "outside the 5 text tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            AttentionPlan(index, masks, valid, text, image)
    assert plan.to("meta").masks.is_meta
