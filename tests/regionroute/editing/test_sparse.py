"""Region-sparse sampling against the dense one."""

import pytest
import torch

from regionroute.attention.row_cache import RowCache, stored_bytes
from regionroute.diffusion.flow import predict_velocity
from regionroute.editing import sampler as sampler_module
from regionroute.editing import sparse as sparse_module
from regionroute.editing.editor import Editor
from regionroute.editing.request import EditOptions, EditRequest
from regionroute.editing.sparse import LIMIT, region_of, schedule
from regionroute.errors import UserError
from regionroute.models.loading import load_base
from regionroute.models.tiny_klein import build_tiny_klein

STEPS = 8


@pytest.fixture
def editor(tiny_backbone, tiny_experts):
    editor = Editor(tiny_backbone, tiny_experts)
    editor.routing = editor.routing.model_copy(update={"branch": "expert", "prompt": "object"})
    return editor


def image(seed=0, height=64, width=64):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def half(height=64, width=64):
    region = torch.zeros(height, width)
    region[:, : width // 4] = 1
    return region


def all_tokens(editor):
    size = editor.backbone.fit_size(64, 64)
    latents = editor.backbone.encode_images(image(0, *size)[None])
    return editor.backbone.text_length + latents[0, 0].numel() // 2


def edits(editor, requests, images=None, **options):
    return [result.image for result in results(editor, requests, images, **options)]


def results(editor, requests, images=None, **options):
    images = images or [image()] * len(requests)
    options = EditOptions(**{"steps": STEPS, "mode": "routed"} | options)
    return editor.edit_batch(images, requests, options)


@pytest.fixture
def count(monkeypatch):
    """Numbers of full and of partial model calls."""
    calls = {"full": 0, "partial": 0}

    def counting(name, function):
        def run(*args, **kwargs):
            calls[name] += 1
            return function(*args, **kwargs)

        return run

    for module in (sparse_module, sampler_module):
        monkeypatch.setattr(module, "predict_velocity", counting("full", predict_velocity))
    rows = counting("partial", sparse_module.predict_rows)
    monkeypatch.setattr(sparse_module, "predict_rows", rows)
    return calls


@pytest.mark.parametrize("objects", [1, 2, 3])
def test_the_whole_image_as_region_is_the_dense_edit_to_the_bit(editor, objects):
    also, whole = (("cup", "lines"), ("fox", "pixel-art")), torch.ones(64, 64) / objects
    request = EditRequest("dog", "pixel-art", also=also[: objects - 1], regions=(whole,) * objects)
    [dense], [sparse] = (edits(editor, [request], sparse=on) for on in (False, True))
    assert torch.equal(dense, sparse)
    assert not torch.equal(dense, image())


def test_a_closed_map_costs_nothing_more_and_changes_nothing(editor, count):
    request = EditRequest("dog", "pixel-art", regions=(torch.zeros(64, 64),))
    [edited] = edits(editor, [request], sparse=True)
    assert torch.equal(edited, image())
    assert count == {"full": 0, "partial": 0}


def test_a_region_is_near_the_dense_edit_and_leaves_the_rest(editor, count):
    request = EditRequest("dog", "pixel-art", regions=(half(),))
    [dense] = edits(editor, [request], sparse=False)
    assert count == {"full": STEPS, "partial": 0}
    [sparse] = edits(editor, [request], sparse=True)
    assert count == {"full": STEPS + 2, "partial": STEPS - 2}
    assert torch.equal(sparse[:, :, 40:], image()[:, :, 40:])
    changed = (dense - image()).square().mean()
    assert changed > 1e-3
    assert (sparse - dense).square().mean() < 0.05 * changed


def test_the_first_call_reads_the_map_and_is_the_first_step(editor, count):
    """N steps are N calls, with the same bits as the map's call and the steps apart."""
    request = EditRequest("dog", "pixel-art")
    [shared] = edits(editor, [request], sparse=False)
    assert count == {"full": STEPS, "partial": 0}
    editor.routing = editor.routing.model_copy(update={"branch": "expert", "prompt": "object"})
    [apart] = _with_separate_first_call(editor, request)
    assert torch.equal(shared, apart)


def _with_separate_first_call(editor, request):
    sampler = sampler_module.Sampler
    original = sampler._first_step_is_shared
    sampler._first_step_is_shared = lambda self, job: False
    try:
        return edits(editor, [request], sparse=False)
    finally:
        sampler._first_step_is_shared = original


@pytest.mark.parametrize("steps", [4, 8])
def test_images_of_a_batch_have_regions_of_their_own(editor, steps):
    small, large, closed = torch.zeros(64, 64), half(), torch.zeros(64, 64)
    small[40:56, 40:56] = 1
    requests = [EditRequest("dog", "pixel-art", regions=(x,)) for x in (small, large, closed)]
    three = [image(1), image(2), image(3)]
    how = {"sparse": True, "steps": steps}
    together = edits(editor, requests, three, **how)
    apart = [edits(editor, [r], [i], **how)[0] for r, i in zip(requests, three, strict=True)]
    assert torch.equal(together[2], three[2])
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("objects", [2, 3])
def test_objects_have_a_branch_each(editor, objects):
    middle = torch.zeros(64, 64)
    middle[:16, 28:40] = 1
    regions, also = (half(), half().flip(-1), middle), (("cup", "lines"), ("fox", "pixel-art"))
    request = EditRequest("dog", "pixel-art", also=also[: objects - 1], regions=regions[:objects])
    [dense], [sparse] = (edits(editor, [request], sparse=on) for on in (False, True))
    changed = (dense - image()).square().mean()
    assert (sparse - dense).square().mean() < 0.05 * changed


def test_guidance_keeps_keys_of_both_prompts(tmp_path, count):
    editor = Editor(load_base(str(build_tiny_klein(tmp_path / "base"))))
    editor.routing = editor.routing.model_copy(update={"prompt": "object"})
    request = EditRequest("dog", "pixel-art", regions=(half(),))
    [dense] = edits(editor, [request], sparse=False, guidance=3.0)
    assert count == {"full": 2 * STEPS, "partial": 0}
    [sparse] = edits(editor, [request], sparse=True, guidance=3.0)
    assert count == {"full": 2 * STEPS + 4, "partial": 2 * STEPS - 4}
    changed = (dense - image()).square().mean()
    assert (sparse - dense).square().mean() < 0.05 * changed
    everywhere = EditRequest("dog", "pixel-art", regions=(torch.ones(64, 64),))
    [dense] = edits(editor, [everywhere], sparse=False, guidance=3.0)
    [sparse] = edits(editor, [everywhere], sparse=True, guidance=3.0)
    assert torch.equal(dense, sparse)


def test_the_default_is_sparse_where_it_pays(editor, monkeypatch):
    """Small images and few steps are dense; results say which it was."""
    request = EditRequest("dog", "pixel-art", regions=(half(),))

    def is_sparse(**options):
        [result] = results(editor, [request], **options)
        return result.settings["sparse"]

    assert is_sparse() is False  # 16 tokens
    assert is_sparse(sparse=True) is True
    monkeypatch.setattr(sparse_module, "MIN_TOKENS", 16)
    assert is_sparse() is True
    assert is_sparse(sparse=False) is False
    assert is_sparse(steps=3) is False
    assert is_sparse(lock_background=False) is False
    assert is_sparse(mode="plain") is False
    for whole_or_closed in (torch.ones(64, 64), torch.zeros(64, 64)):
        request = EditRequest("dog", "pixel-art", regions=(whole_or_closed,))
        assert is_sparse(sparse=True) is False  # no call is partial


def test_rows_that_do_not_fit_are_not_stored(editor, monkeypatch, caplog):
    request = EditRequest("dog", "pixel-art", regions=(half(),))
    [dense] = edits(editor, [request], sparse=False)
    needed = stored_bytes(editor.backbone.transformer.config, all_tokens(editor), 4)
    for free, fits in ((needed / LIMIT, True), (needed / LIMIT - 1, False)):
        monkeypatch.setattr(sampler_module, "free_bytes", lambda _, free=free: free)
        caplog.clear()
        [result] = results(editor, [request], sparse=True)
        assert result.settings["sparse"] is fits
        assert ("every token is computed" in caplog.text) is not fits
    assert torch.equal(result.image, dense)


def test_what_is_stored_is_what_was_estimated(editor, monkeypatch):
    caches = []
    monkeypatch.setattr(sparse_module, "RowCache", lambda: caches.append(RowCache()) or caches[-1])
    edits(editor, [EditRequest("dog", "pixel-art", regions=(half(),))], sparse=True)
    config = editor.backbone.transformer.config
    assert sum(cache.nbytes for cache in caches) == stored_bytes(config, all_tokens(editor), 4)


def test_the_tokens_of_a_region():
    gates = torch.zeros(2, 8, 8)
    gates[0, 3, 3], gates[1, 0, 0], gates[1, 7, 7] = 1.0, 0.04, 0.06
    found = region_of(gates)
    assert found.open.sum((1, 2)).tolist() == [9, 4]  # a ring around one token, and in a corner
    assert sorted(set(found.rows[0].tolist())) == [18, 19, 20, 26, 27, 28, 34, 35, 36]
    assert sorted(set(found.rows[1].tolist())) == [54, 55, 62, 63]
    assert not found.whole
    assert not found.empty
    assert region_of(torch.ones(1, 8, 8)).whole
    assert region_of(torch.zeros(1, 8, 8)).empty


@pytest.mark.parametrize(
    ("steps", "kinds"),
    [
        (1, "f"), (2, "fl"), (4, "fwwl"), (8, "fwwwwfwl"),
        (28, "f" + 17 * "p" + "f" + 8 * "w" + "l"),
    ],
)  # fmt: skip
def test_what_the_calls_of_the_steps_compute(steps, kinds):
    assert "".join(kind[0] for kind in schedule(steps)) == kinds


def test_plain_edits_have_no_region():
    with pytest.raises(UserError, match="needs mode routed"):
        EditOptions(mode="plain", sparse=True).resolved(steps=4, guidance=1.0, mode="plain")
