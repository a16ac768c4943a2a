import importlib.util
import logging
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from regionroute.attention import (
    AttentionPlan,
    AttentionRecorder,
    attend,
    attend_among,
    dispatch,
    kernels,
)
from regionroute.attention import columns as columns_module
from regionroute.config.run import load_config
from regionroute.config.sites import AttentionSite
from regionroute.errors import UserError

CPU_BACKENDS = ["cpu", "dense"]


def draw(batch=2, heads=3, tokens=23, width=16, dtype=torch.float64, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    shape = (3, batch, heads, tokens, width)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * spread).to(dtype)


def naive_probs(query, key, columns, keys=None):
    """One softmax at a time, in plain Python loops."""
    batch, heads, tokens, width = query.shape
    probs = torch.zeros(batch, heads, tokens, *columns.shape[1:], dtype=query.dtype)
    for b in range(batch):
        for s, wanted in enumerate(columns[b]):
            for k, column in enumerate(wanted.tolist()):
                if column < 0:
                    continue
                pool = list(range(tokens))[:keys] if keys != "own" else wanted[wanted >= 0].tolist()
                for h in range(heads):
                    for i in range(tokens):
                        logits = key[b, h] @ query[b, h, i] / width**0.5
                        probs[b, h, i, s, k] = logits[column].exp() / logits[pool].exp().sum()
    return probs


def explicit(query, key, value, columns, scale=None, rows=None, mask=None):
    """The whole attention matrix; the reference for output, probabilities and gradients."""
    logits = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        logits = (
            logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
        )
    matrix = logits.softmax(-1)
    flat = columns.clamp(min=0).flatten(1)[:, None, None].expand(-1, *matrix.shape[1:3], -1)
    probs = matrix.gather(-1, flat).unflatten(-1, columns.shape[1:])
    probs = probs.masked_fill(columns.lt(0)[:, None, None], 0.0)
    return matrix.to(value.dtype) @ value, probs[:, :, rows or slice(None)]


def error(found, wanted):
    return ((found.double() - wanted.double()).norm() / wanted.double().norm()).item()


def results(run, tensors, columns, weights, **options):
    """Output, probabilities and the gradients of query, key and value."""
    query, key, value = (t.detach().clone().requires_grad_() for t in tensors)
    out, probs = run(query, key, value, columns, **options)
    scalar = (out.double() * weights[0]).sum() + (probs.double() * weights[1]).sum()
    return out, probs, *torch.autograd.grad(scalar, (query, key, value))


COLUMNS = torch.tensor([[[1, 4, -1], [3, -1, -1]], [[0, 2, 5], [-1, -1, -1]]])


def random_case(seed, dtype):
    """Sizes that are a multiple of nothing, uneven phrases, some of them empty."""
    generator = torch.Generator().manual_seed(seed)

    def pick(low, high):
        return int(torch.randint(low, high + 1, (), generator=generator))

    batch, tokens, pairs, longest = pick(1, 4), pick(9, 75), pick(1, 5), pick(1, 4)
    tensors = draw(batch, pick(1, 3), tokens, 8 * pick(1, 4), dtype, seed)
    columns = torch.randint(-1, tokens, (batch, pairs, longest), generator=generator)
    start = pick(0, tokens // 2)
    rows = slice(start, pick(start + 1, tokens))
    out, probs = explicit(*tensors.double(), columns, rows=rows)
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in (out, probs)]
    weights[1] *= 30  # so that the path through the probabilities is as large as the other
    return tensors, columns, rows, weights


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-6), (torch.float32, 3e-6)])
def test_agrees_with_the_explicit_softmax(backend, seed, dtype, limit):
    tensors, columns, rows, weights = random_case(seed, dtype)
    options = {"rows": rows}
    found = results(attend, tensors, columns, weights, **options, backend=backend)
    wanted = results(explicit, tensors.double(), columns, weights, **options)
    for name, got, want in zip(("out", "probs", "dq", "dk", "dv"), found, wanted, strict=True):
        assert error(got, want) < limit, name


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_worse_than_twice_the_dense_one(seed, dtype):
    tensors, columns, rows, weights = random_case(seed, dtype)
    exact = results(explicit, tensors.double(), columns, weights, rows=rows)
    found = results(attend, tensors, columns, weights, rows=rows)
    dense = results(explicit, tensors, columns, weights, rows=rows)
    for got, rounded, want in zip(found, dense, exact, strict=True):
        assert error(got, want) <= 2 * error(rounded, want)


def test_plain_autograd_through_the_fused_kernel_would_be_wrong():
    """What `attend` repairs: without it, half of the probabilities' gradient is missing."""
    query, key, value = draw(dtype=torch.float64)
    columns = torch.randint(0, 23, (2, 3), generator=torch.Generator().manual_seed(0))
    weights = [torch.zeros(2, 3, 23, 16), torch.ones(2, 3, 23, 3).double()]

    def unrepaired(query, key, value, columns):
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
        logits = query @ key.mT * query.shape[-1] ** -0.5
        picked = logits.gather(-1, columns[:, None, None].expand(-1, *logits.shape[1:3], -1))
        return out, (picked - lse.detach()[..., None]).exp()

    wanted = results(attend, (query, key, value), columns, weights)
    wrong = results(unrepaired, (query, key, value), columns, weights)
    torch.testing.assert_close(wrong[1], wanted[1])
    assert error(wrong[2], wanted[2]) > 0.2


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_gradcheck_through_both_outputs(backend):
    inputs = [x.requires_grad_() for x in draw(batch=2, heads=1, tokens=7, width=8).unbind(0)]

    def run(query, key, value):
        return attend(query, key, value, COLUMNS, rows=slice(1, 7), backend=backend)

    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale_of_out", [0.0, 1e-12, 1e-4])
def test_rows_whose_output_nobody_uses(dtype, scale_of_out):
    """The context rows of the last block: no gradient of the output, one of the probabilities."""
    tensors, columns, rows, weights = random_case(3, dtype)
    weights[0] = scale_of_out * weights[0]
    weights[0][:, :, ::2] = 0
    found = results(attend, tensors, columns, weights, rows=rows)
    wanted = results(explicit, tensors.double(), columns, weights, rows=rows)
    limit = {torch.float64: 1e-6, torch.float32: 5e-6}.get(dtype, 0.02)
    for got, want in zip(found[2:4], wanted[2:4], strict=True):
        assert error(got, want) < limit
    if scale_of_out == 0:
        assert found[4].double().abs().max() <= 1e-9 * found[2].double().abs().max()
    assert all(x.isfinite().all() for x in found)


def test_only_the_probabilities_are_used():
    query, key, value = (x.requires_grad_() for x in draw())
    attend(query, key, value, COLUMNS)[1].square().sum().backward()
    other = [x.detach().clone().requires_grad_() for x in (query, key, value)]
    explicit(*other, COLUMNS)[1].square().sum().backward()
    torch.testing.assert_close(query.grad, other[0].grad)
    torch.testing.assert_close(key.grad, other[1].grad)


def test_one_column_a_pair_needs_no_last_axis():
    query, key, value = draw()
    columns = torch.tensor([[1, 4], [0, -1]])
    out, probs = attend(query, key, value, columns)
    assert probs.shape == (2, 3, 23, 2)
    whole = attend(query, key, value, columns[..., None])
    assert torch.equal(probs, whole[1].squeeze(-1))
    assert torch.equal(out, whole[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_output_is_the_stock_one_to_the_bit(dtype):
    query, key, value = draw(dtype=dtype)
    out, _ = attend(query, key, value, COLUMNS)
    assert torch.equal(out, F.scaled_dot_product_attention(query, key, value))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_rows_only_cut_the_work(backend, monkeypatch):
    query, key, value = draw()
    _, whole = attend(query, key, value, COLUMNS, backend=backend)
    monkeypatch.setattr(columns_module, "_CHUNK_ELEMENTS", 5 * 2 * 3 * 23)  # "dense": five rows
    _, part = attend(query, key, value, COLUMNS, rows=slice(7, 19), backend=backend)
    torch.testing.assert_close(part, whole[:, :, 7:19], rtol=1e-12, atol=0)


def test_dense_in_chunks_has_the_same_gradients(monkeypatch):
    tensors, columns, rows, weights = random_case(1, torch.float64)
    whole = results(attend, tensors, columns, weights, rows=rows, backend="dense")
    monkeypatch.setattr(columns_module, "_CHUNK_ELEMENTS", 1)
    chunked = results(attend, tensors, columns, weights, rows=rows, backend="dense")
    for a, b in zip(whole, chunked, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("kind", ["keys", "full", "additive"])
def test_attention_masks(backend, kind):
    tensors = draw(dtype=torch.float64)
    generator = torch.Generator().manual_seed(5)
    keep = torch.rand(2, 1, 1, 23, generator=generator) > 0.4
    if kind == "full":
        keep = torch.rand(2, 3, 23, 23, generator=generator) > 0.4
        keep |= torch.eye(23, dtype=torch.bool)
    mask = torch.randn(keep.shape, generator=generator).double() if kind == "additive" else keep
    keep[..., 0] = True
    weights = [torch.randn(2, 3, 23, 16).double(), torch.randn(2, 3, 23, 2, 3).double()]
    found = results(attend, tensors, COLUMNS, weights, mask=mask, backend=backend)
    wanted = results(explicit, tensors, COLUMNS, weights, mask=mask)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-4), (torch.float16, 1e-4)]
)
def test_probabilities_are_computed_in_fp32(dtype, limit):
    """To the kernel's own exp in half precision, which is far finer than their rounding."""
    query, key, value = draw(dtype=dtype)
    out, probs = attend(query, key, value, COLUMNS)
    assert probs.dtype == torch.float32
    assert out.dtype == dtype
    exact = naive_probs(query.double(), key.double(), COLUMNS)
    torch.testing.assert_close(probs.double(), exact, rtol=limit, atol=0)


def test_under_autocast_the_probabilities_are_those_of_the_rounded_attention():
    query, key, value = draw(dtype=torch.float32)
    value = value.bfloat16()  # norms hand over fp32 q, k beside a bf16 value
    plain_out, plain = attend(query.bfloat16(), key.bfloat16(), value, COLUMNS)
    with torch.autocast("cpu", torch.bfloat16):
        out, probs = attend(query, key, value, COLUMNS)
        stock = F.scaled_dot_product_attention(query, key, value)
    assert torch.equal(probs, plain)
    assert torch.equal(out, plain_out)
    assert torch.equal(out, stock)


@pytest.mark.parametrize(("text_len", "keys"), [(7, 7), (None, "own")])
def test_shares_among_few_rivals(text_len, keys):
    query, key, value = draw()
    out, probs = attend_among(query, key, value, COLUMNS, text_len=text_len)
    torch.testing.assert_close(probs, naive_probs(query, key, COLUMNS, keys), rtol=1e-9, atol=0)
    assert torch.equal(out, F.scaled_dot_product_attention(query, key, value))
    _, part = attend_among(query, key, value, COLUMNS, text_len=text_len, rows=slice(3, 9))
    torch.testing.assert_close(part, probs[:, :, 3:9])


def attend_by_norm(norm, query, key, value, columns):
    if norm == "full":
        return attend(query, key, value, columns)
    return attend_among(query, key, value, columns, text_len=7 if norm == "text" else None)


@pytest.mark.parametrize("norm", ["full", "text", "selected"])
def test_padding_has_no_gradient_and_spoils_none(norm):
    query, key, value = draw()
    key.requires_grad_()
    _, probs = attend_by_norm(norm, query, key, value, COLUMNS)
    (gradient,) = torch.autograd.grad(probs[1, :, :, 1].sum(), key, retain_graph=True)
    assert (gradient == 0).all()
    (gradient,) = torch.autograd.grad(probs[..., 0].square().sum(), key)
    assert gradient.isfinite().all()


def test_large_logits_stay_finite():
    query, key, value = draw(dtype=torch.float32, spread=60.0)
    query.requires_grad_()
    _, probs = attend(query, key, value, COLUMNS)
    probs.sum().backward()
    assert probs.isfinite().all()
    assert query.grad.isfinite().all()


def test_one_token_has_a_gradient_and_the_published_scheme_has_none():
    query, key, value = draw(batch=1)
    query.requires_grad_()
    column = torch.tensor([[[4]]])
    for norm, silent in (("full", False), ("text", False), ("selected", True)):
        _, probs = attend_by_norm(norm, query, key, value, column)
        (gradient,) = torch.autograd.grad(probs[:, :, ::2].sum(), query)
        assert bool((gradient == 0).all()) == silent
        assert bool((probs == 1).all()) == silent


def test_no_pairs_at_all():
    query, key, value = draw()
    _, probs = attend(query, key, value, torch.zeros(2, 0, 3, dtype=torch.long))
    assert probs.shape == (2, 3, 23, 0, 3)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (torch.zeros(2, dtype=torch.long), {}, r"\[B,S,K\]"),
        (torch.zeros(1, 1, 1, dtype=torch.long), {}, "B=2"),
        (COLUMNS, {"backend": "magic"}, "auto, cpu, flash"),
        (COLUMNS, {"mask": torch.zeros(23, 23, requires_grad=True)}, "no gradient to a mask"),
    ],
)
def test_bad_arguments(columns, options, message):
    query, key, value = draw()
    with pytest.raises(ValueError, match=message):
        attend(query, key, value, columns, **options)


# --- backends -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        ("flash", "needs a CUDA GPU"),
        ("efficient", "needs a CUDA GPU"),
        ("cudnn", "needs a CUDA GPU"),
        ("flex", "does not return the log-sum-exp on the CPU"),
    ],
)
def test_a_named_backend_that_cannot_run_here_says_why(backend, reason):
    query, key, value = draw()
    with pytest.raises(UserError, match=f'"{backend}" cannot run here: .*{reason}'):
        attend(query.requires_grad_(), key, value, COLUMNS, backend=backend)


def test_xformers_that_is_not_there_is_named():
    if importlib.util.find_spec("xformers"):
        pytest.skip("xformers is installed")
    with pytest.raises(UserError, match="package xformers is not installed"):
        attend(*draw(), COLUMNS, backend="xformers")


def test_auto_says_once_what_it_chose(caplog):
    dispatch._say_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="regionroute"):
        for _ in range(3):
            attend(*draw(dtype=torch.float32), COLUMNS)
    assert caplog.messages == ["attention columns by the cpu kernel (cpu, float32, heads 16 wide)"]


def test_a_kernel_that_computes_its_output_again_is_found_out(monkeypatch):
    """As some builds of xformers do: their backward pass ignores the row term it is given."""
    true = kernels.KERNELS["cpu"]

    def backward(x, grad_out, out, lse, saved):
        again, lse, _ = true.forward(x)
        return true.backward(x, grad_out, again, lse, saved)

    forgetful = kernels.Kernel(true.refusal, true.forward, backward)
    monkeypatch.setitem(kernels.KERNELS, "cpu", forgetful)
    dispatch._verify.cache_clear()
    try:
        with pytest.raises(UserError, match="loses the gradient of the log-sum-exp"):
            attend(*draw(), COLUMNS, backend="cpu")
        tensors, columns, rows, weights = random_case(0, torch.float64)
        found = results(attend, tensors, columns, weights, rows=rows)  # auto takes another
        wanted = results(explicit, tensors, columns, weights, rows=rows)
        assert error(found[2], wanted[2]) < 1e-9
    finally:
        dispatch._verify.cache_clear()


def test_a_kernel_is_tried_in_inference_mode_too():
    dispatch._verify.cache_clear()
    tensors = draw(dtype=torch.float32)
    with torch.inference_mode():
        found = attend(*tensors, COLUMNS)
    wanted = attend(*tensors, COLUMNS, backend="dense")
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("backend", ["flash", "efficient", "cudnn"])
@pytest.mark.parametrize("masked", [False, True])
def test_cuda_operators_are_called_as_they_are_declared(backend, masked):
    """Shapes only: PyTorch's meta kernels check the calls where there is no GPU."""
    if masked and backend == "flash":
        pytest.skip("flash takes no mask")
    x = torch.empty(2, 3, 40, 64, dtype=torch.bfloat16, device="meta")
    bias = kernels._additive(torch.ones(2, 1, 1, 40, dtype=torch.bool, device="meta"), x)
    inputs = kernels.Inputs(x, x, x, bias if masked else None, 0.125)
    kernel = kernels.KERNELS[backend]
    out, lse, saved = kernel.forward(inputs)
    assert out.shape == x.shape
    assert lse.shape[:2] == (2, 3)
    assert lse.shape[2] >= 40
    grads = kernel.backward(inputs, torch.empty_like(out), out, lse, saved)
    assert [grad.shape for grad in grads] == [x.shape] * 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("backend", ["flash", "efficient", "cudnn", "flex", "xformers", "dense"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_cuda_kernels_agree_with_the_explicit_softmax(backend, dtype):
    tensors, columns, rows, weights = random_case(2, dtype)
    cuda = [x.cuda() for x in weights]
    try:
        found = results(attend, tensors.cuda(), columns.cuda(), cuda, rows=rows, backend=backend)
    except UserError as refusal:
        pytest.skip(str(refusal))
    exact = results(explicit, tensors.double(), columns, weights, rows=rows)
    dense = results(explicit, tensors, columns, weights, rows=rows)
    for got, rounded, want in zip(found, dense, exact, strict=True):
        assert error(got.cpu(), want) <= 2 * error(rounded, want) + 1e-6


def test_transposed_layouts_as_flux_hands_them_over():
    tensors = draw().transpose(2, 3).contiguous().transpose(2, 3)
    assert not tensors[0].is_contiguous()
    weights = [torch.ones(2, 3, 23, 16).double(), torch.ones(2, 3, 23, 2, 3).double()]
    for a, b in zip(
        results(attend, tensors, COLUMNS, weights),
        results(explicit, tensors, COLUMNS, weights),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("masked", [False, True])
def test_compiled(masked):
    """AOT tracing sees through the custom backward pass."""
    tensors, columns, rows, weights = random_case(0, torch.float64)
    options = {"rows": rows}
    if masked:
        options["mask"] = torch.arange(tensors.shape[3]) % 3 != 1
    torch.compiler.reset()
    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True)
    for a, b in zip(
        results(compiled, tensors, columns, weights, **options),
        results(attend, tensors, columns, weights, **options),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("masked", ["no", "bool", "additive"])
def test_flex_attention(masked, monkeypatch):
    """Forward only: its plain form runs on the CPU, its compiled one and its backward on a GPU."""
    from torch.nn.attention import flex_attention

    monkeypatch.setattr(dispatch, "_flex_refusal", lambda query: None)
    monkeypatch.setattr(dispatch, "_compiled_flex", lambda: flex_attention.flex_attention)
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    tensors, columns, rows, _ = random_case(2, torch.float32)
    options = {"rows": rows}
    if masked != "no":
        keep = torch.arange(tensors.shape[3]) % 5 != 1
        options["mask"] = keep if masked == "bool" else keep * 2.0
    found = attend(*tensors, columns, **options, backend="flex")
    wanted = explicit(*tensors.double(), columns, **options)
    for got, want in zip(found, wanted, strict=True):
        assert error(got, want) < 1e-5


def test_memory_grows_with_the_columns_and_not_with_the_square():
    """What the backward pass keeps, counted through the saved tensors."""
    kept = []

    def pack(tensor):
        kept.append((tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()))
        return tensor

    def saved_bytes(tokens):
        kept.clear()
        query, key, value = (x.requires_grad_() for x in draw(1, 2, tokens, 16, torch.float32))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            attend(query, key, value, torch.zeros(1, 2, dtype=torch.long))
        return sum(dict(kept).values())

    assert saved_bytes(1024) < 2.2 * saved_bytes(512)


@pytest.fixture
def fake_xformers(monkeypatch):
    """xformers' operator by its published contract, in plain PyTorch, and its calls."""
    calls = []

    def heads_first(*tensors):
        return [tensor.transpose(1, 2) for tensor in tensors]

    def probabilities(query, key, bias, scale):
        logits = query @ key.mT * scale
        return logits if bias is None else logits + bias

    def forward(query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None):
        calls.append("forward")
        query, key, value = heads_first(query, key, value)
        logits = probabilities(query, key, attn_bias, scale)
        return (logits.softmax(-1) @ value).transpose(1, 2), logits.logsumexp(-1)

    def backward(
        grad, output, lse, query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None
    ):
        calls.append("backward")
        grad, output, query, key, value = heads_first(grad, output, query, key, value)
        probs = (probabilities(query, key, attn_bias, scale) - lse[..., None]).exp()
        inner = probs * (grad @ value.mT - (grad * output).sum(-1, keepdim=True))
        grads = (inner @ key * scale, inner.mT @ query * scale, probs.mT @ grad)
        return [one.transpose(1, 2) for one in grads]

    fmha = ModuleType("xformers.ops.fmha")
    fmha.memory_efficient_attention_forward_requires_grad = forward
    fmha.memory_efficient_attention_backward = backward
    package, ops = ModuleType("xformers"), ModuleType("xformers.ops")
    package.__spec__ = ModuleSpec("xformers", None)
    package.ops, ops.fmha = ops, fmha
    for module in (package, ops, fmha):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(kernels, "_refuse_cuda", lambda query, value, dtypes: None)
    dispatch._verify.cache_clear()
    yield calls
    dispatch._verify.cache_clear()


@pytest.mark.parametrize("masked", [False, True])
def test_xformers_gives_the_explicit_softmax_and_its_gradients(fake_xformers, masked):
    tensors, columns, rows, weights = random_case(3, torch.float64)
    mask = None
    if masked:
        mask = torch.ones(1, 1, 1, tensors.shape[-2], dtype=torch.bool)
        mask[..., 2] = False
    found = results(attend, tensors, columns, weights, rows=rows, mask=mask, backend="xformers")
    wanted = results(attend, tensors, columns, weights, rows=rows, mask=mask, backend="dense")
    for got, want in zip(found, wanted, strict=True):
        assert error(got, want) < 1e-9
    assert {"forward", "backward"} <= set(fake_xformers)


def test_the_recorder_s_backend_reaches_the_kernel(fake_xformers):
    recorder = AttentionRecorder(backend="xformers")
    tensors = draw(dtype=torch.float32)
    tokens = tensors.shape[-2]
    plan = AttentionPlan(
        token_index=torch.tensor([[[1]], [[2]]]), masks=torch.ones(2, 1, 2, 2),
        valid=torch.ones(2, 1, dtype=torch.bool), text_len=tokens - 8, image_len=4,
    )  # fmt: skip
    recorder._plan = plan
    recorder.attend([AttentionSite("double.0", "double.0", "target", None, "style")], *tensors)
    assert fake_xformers[-1] == "forward"


def test_a_kernel_for_maps_that_use_none_is_refused():
    with pytest.raises(UserError, match="norm full with backend flash"):
        load_config(None, ["supervision.backend=flash", "supervision.norm=text"])
