import pytest
import torch
import torch.nn.functional as F

from regionroute.attention import attend


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


COLUMNS = torch.tensor([[[1, 4, -1], [3, -1, -1]], [[0, 2, 5], [-1, -1, -1]]])


@pytest.mark.parametrize(("norm", "keys"), [("full", None), ("text", 7), ("selected", "own")])
def test_matches_an_explicit_softmax(norm, keys):
    query, key, value = draw()
    out, probs = attend(query, key, value, COLUMNS, norm=norm, text_len=7)
    torch.testing.assert_close(probs, naive_probs(query, key, COLUMNS, keys), rtol=1e-9, atol=0)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(query, key, value))


@pytest.mark.parametrize("query_chunk", [None, 5])
def test_gradients_through_both_outputs(query_chunk):
    inputs = [x.requires_grad_() for x in draw(batch=2, heads=1, tokens=7, width=4).unbind(0)]

    def run(query, key, value):
        return attend(query, key, value, COLUMNS, rows=slice(1, 7), query_chunk=query_chunk)

    assert torch.autograd.gradcheck(run, inputs)


def test_rows_and_chunks_only_cut_the_work():
    query, key, value = draw()
    _, whole = attend(query, key, value, COLUMNS)
    _, part = attend(query, key, value, COLUMNS, rows=slice(7, 19), query_chunk=5)
    torch.testing.assert_close(part, whole[:, :, 7:19], rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_probabilities_are_computed_in_fp32(dtype):
    query, key, value = draw(dtype=dtype)
    out, probs = attend(query, key, value, COLUMNS)
    assert probs.dtype == torch.float32
    assert out.dtype == dtype
    exact = naive_probs(query.double(), key.double(), COLUMNS)
    torch.testing.assert_close(probs.double(), exact, rtol=1e-5, atol=0)


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


@pytest.mark.parametrize("norm", ["full", "text", "selected"])
def test_padding_has_no_gradient_and_spoils_none(norm):
    query, key, value = draw()
    key.requires_grad_()
    _, probs = attend(query, key, value, COLUMNS, norm=norm, text_len=7)
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
        _, probs = attend(query, key, value, column, norm=norm, text_len=7)
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
        (torch.zeros(2, 3, dtype=torch.long), {}, r"\[B,S,K\]"),
        (torch.zeros(1, 1, 1, dtype=torch.long), {}, "B=2"),
        (COLUMNS, {"norm": "all"}, "full, text, selected"),
        (COLUMNS, {"norm": "text"}, "text_len"),
    ],
)
def test_bad_arguments(columns, options, message):
    query, key, value = draw()
    with pytest.raises(ValueError, match=message):
        attend(query, key, value, columns, **options)
