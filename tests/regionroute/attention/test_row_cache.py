"""Calls that compute some tokens over the stored keys and values of the others."""

import copy

import pytest
import torch
from torch._dynamo.utils import counters

from regionroute.attention import AttentionPlan, AttentionRecorder
from regionroute.attention.row_cache import RowCache
from regionroute.diffusion.flow import predict_rows, predict_velocity
from regionroute.models.loading import load_base
from regionroute.models.tiny import build_tiny
from regionroute.models.tiny_klein import build_tiny_klein


@pytest.fixture(scope="module", params=[build_tiny, build_tiny_klein])
def base(request, tmp_path_factory):
    return load_base(str(request.param(tmp_path_factory.mktemp("base") / "base")))


@pytest.fixture(scope="module")
def given(base):
    """Arguments of `predict_velocity` for two images, the transformer first."""
    generator = torch.Generator().manual_seed(1)
    context = base.encode_images(torch.rand(2, 3, 64, 48, generator=generator))
    noise = torch.randn(context.shape, generator=generator)
    embeds, pooled = base.encode_prompts(["make the dog in red style", "a cup"])
    return [base.transformer, noise, context, embeds, pooled, torch.tensor([0.7, 0.4]), 2.5]


def stale(given):
    """Other images and prompts of the same sizes."""
    changed = list(given)
    changed[1], changed[2], changed[3] = given[2].flip(0), given[1], given[3].flip(0)
    return changed


def sizes(given):
    tokens = given[1].shape[2] // 2 * (given[1].shape[3] // 2)
    return given[3].shape[1], tokens


def joint(rows, text):
    every = torch.arange(text).expand(len(rows), -1)
    return torch.cat([every, rows + text], dim=1)


@torch.no_grad()
def test_a_full_call_is_the_plain_one(given):
    cache = RowCache()
    with cache.full(given[0]):
        stored = predict_velocity(*given)
    assert torch.equal(stored, predict_velocity(*given))
    assert cache.nbytes > 0


@torch.no_grad()
def test_all_tokens_anew_are_the_plain_call_whatever_is_stored(given):
    text, tokens = sizes(given)
    cache = RowCache()
    with cache.full(given[0]):
        predict_velocity(*stale(given))
    rows = torch.arange(2 * tokens).expand(2, -1)
    with cache.partial(given[0], joint(rows, text)):
        anew = predict_rows(*given, rows)
    assert torch.equal(anew, predict_velocity(*given))


@torch.no_grad()
def test_some_tokens_over_fresh_keys_are_those_of_the_plain_call(given):
    """Each sample has tokens of its own; the second has one fewer and repeats its last."""
    text, _ = sizes(given)
    cache = RowCache()
    with cache.full(given[0]):
        plain = predict_velocity(*given)
    rows = torch.tensor([[1, 5, 7], [0, 2, 2]])
    with cache.partial(given[0], joint(rows, text)):
        some = predict_rows(*given, rows)
    there = some != 0
    torch.testing.assert_close(some[there], plain[there], atol=1e-6, rtol=1e-5)
    cells = there[:, 0].float()  # a token is 2x2 latent cells
    assert cells.sum((1, 2)).tolist() == [12.0, 8.0]


@torch.no_grad()
def test_tokens_that_are_not_attended_to_do_not_matter(given):
    """With keys of given tokens alone, whatever is stored; padding is counted once."""
    text, tokens = sizes(given)
    context = tokens + torch.arange(tokens).expand(2, -1)
    found = []
    for before, some in (
        (given, [[1, 5, 7], [0, 2, 2]]),
        (stale(given), [[1, 5, 7], [0, 2, 2]]),
        (stale(given), [[1, 5, 7, 7], [0, 2, 2, 2]]),
    ):
        cache, rows = RowCache(), torch.cat([torch.tensor(some), context], dim=1)
        every = joint(rows, text)
        keys = torch.zeros(2, text + 2 * tokens, dtype=torch.bool).scatter_(1, every, True)
        with cache.full(given[0]):
            predict_velocity(*before)
        with cache.partial(given[0], every, keys):
            found.append(predict_rows(*given, rows))
    assert torch.equal(found[0], found[1])
    torch.testing.assert_close(found[0], found[2], atol=1e-6, rtol=1e-5)
    there = found[0] != 0
    assert (found[0] - predict_velocity(*given))[there].abs().max() > 1e-4


@torch.no_grad()
def test_stale_keys_change_the_result(given):
    text, _ = sizes(given)
    cache, rows = RowCache(), torch.tensor([[1, 5], [0, 2]])
    with cache.full(given[0]):
        predict_velocity(*stale(given))
    with cache.partial(given[0], joint(rows, text)):
        some = predict_rows(*given, rows)
    assert (some - predict_velocity(*given))[some != 0].abs().max() > 1e-3


@torch.no_grad()
def test_a_call_is_recorded_and_stored_at_once(given):
    """Maps and velocity are those of a call that is recorded alone."""
    text, tokens = sizes(given)
    plan = AttentionPlan(
        token_index=torch.tensor([[[2, 3]], [[1, -1]]]),
        masks=torch.zeros(2, 1, given[1].shape[2] // 2, given[1].shape[3] // 2),
        valid=torch.ones(2, 1, dtype=torch.bool),
        text_len=text,
        image_len=tokens,
    )
    recorder, cache = AttentionRecorder(), RowCache()
    with recorder.recording(given[0], plan):
        alone = predict_velocity(*given)
    maps = recorder.maps()
    with recorder.cores(given[0], plan) as cores, cache.full(given[0], cores):
        both = predict_velocity(*given)
    assert torch.equal(both, alone)
    assert maps.keys() == recorder.maps().keys()
    assert all(torch.equal(maps[name], recorder.maps()[name]) for name in maps)


@torch.no_grad()
def test_processors_are_put_back_and_a_first_call_is_needed(given):
    text, _ = sizes(given)
    before = predict_velocity(*given)
    rows = torch.tensor([[1], [2]])
    with (
        pytest.raises(RuntimeError, match="needs a full one"),
        RowCache().partial(given[0], joint(rows, text)),
    ):
        pass
    assert torch.equal(predict_velocity(*given), before)


@torch.no_grad()
def test_compiled_blocks_meet_each_size_of_region_once(given):
    """Other tokens of the same number compile nothing."""
    text, _ = sizes(given)
    torch.compiler.reset()
    counters.clear()
    transformer, rest = copy.deepcopy(given[0]), given[1:]
    cache = RowCache()
    with cache.full(transformer):
        predict_velocity(transformer, *rest)
    choices = [torch.tensor(x).expand(2, -1) for x in ([1, 5, 7], [0, 2, 3], [4, 5, 6])]

    def partial(rows):
        every = joint(rows, text)
        with cache.partial(transformer, every):
            return predict_rows(transformer, *rest, rows)

    wanted = [partial(rows) for rows in choices]
    transformer.compile_repeated_blocks(backend="eager")
    graphs = []
    for rows, one in zip(choices, wanted, strict=True):
        torch.testing.assert_close(partial(rows), one, atol=1e-5, rtol=1e-4)
        graphs.append(counters["stats"]["unique_graphs"])
    torch.compiler.reset()
    assert graphs[0] > 0
    assert graphs[1:] == graphs[:1] * 2
