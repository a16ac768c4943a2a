"""Region-sparse sampling against the dense one."""

import pytest
import torch

from regionroute.diffusion.flow import predict_velocity
from regionroute.editing import sampler as sampler_module
from regionroute.editing.editor import Editor
from regionroute.editing.request import EditOptions, EditRequest
from regionroute.editing.sparse import full_steps, region_of
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


def edits(editor, requests, images=None, **options):
    images = images or [image()] * len(requests)
    options = EditOptions(steps=STEPS, mode="routed", **options)
    return [result.image for result in editor.edit_batch(images, requests, options)]


@pytest.fixture
def count(monkeypatch):
    """Numbers of full and of partial model calls."""
    calls = {"full": 0, "partial": 0}

    def counting(name, function):
        def run(*args, **kwargs):
            calls[name] += 1
            return function(*args, **kwargs)

        return run

    from regionroute.editing import sparse

    for module in (sparse, sampler_module):
        monkeypatch.setattr(module, "predict_velocity", counting("full", predict_velocity))
    monkeypatch.setattr(sparse, "predict_rows", counting("partial", sparse.predict_rows))
    return calls


def test_the_whole_image_as_region_is_the_dense_edit_to_the_bit(editor):
    request = EditRequest("dog", "pixel-art", regions=(torch.ones(64, 64),))
    [dense], [sparse] = (edits(editor, [request], sparse=on) for on in (False, True))
    assert torch.equal(dense, sparse)


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
    assert count == {"full": STEPS + 3, "partial": STEPS - 3}
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


def test_images_of_a_batch_have_regions_of_their_own(editor):
    small, large = torch.zeros(64, 64), half()
    small[40:56, 40:56] = 1
    requests = [EditRequest("dog", "pixel-art", regions=(region,)) for region in (small, large)]
    pair = [image(1), image(2)]
    together = edits(editor, requests, pair, sparse=True)
    apart = [edits(editor, [r], [i], sparse=True)[0] for r, i in zip(requests, pair, strict=True)]
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_two_objects_have_a_branch_each(editor):
    left, right = half(), half().flip(-1)
    request = EditRequest("dog", "pixel-art", also=(("cup", "lines"),), regions=(left, right))
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
    assert count == {"full": 2 * STEPS + 6, "partial": 2 * STEPS - 6}
    changed = (dense - image()).square().mean()
    assert (sparse - dense).square().mean() < 0.05 * changed


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
    ("steps", "full"),
    [(1, {0}), (2, {0, 1}), (4, {0, 3}), (8, {0, 5, 7}), (28, {0, 18, 25})],
)
def test_which_steps_are_full(steps, full):
    assert full_steps(steps) == full


def test_plain_edits_have_no_region():
    with pytest.raises(UserError, match="needs mode routed"):
        EditOptions(mode="plain", sparse=True).resolved(steps=4, guidance=1.0, mode="plain")
