"""Region-sparse sampling against the dense one."""

import pytest
import torch

from regionroute.attention.row_cache import RowCache, row_cache_bytes
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
FULL = {4: (1, 1, 0, 4), 8: (2, 2, 0, 8)}  # full calls of two regions, none, the whole image


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


def test_the_first_call_is_the_first_sparse_step(editor, count):
    """It stores what partial calls read, with the same bits as a call apart."""
    narrow = {"threshold": 1.5, "sharpness": 30.0}
    editor.routing = editor.routing.model_copy(update=narrow)
    request = EditRequest("dog", "pixel-art")
    [shared] = results(editor, [request], sparse=True)
    assert shared.settings["sparse"] is True
    assert count == {"full": 2, "partial": STEPS - 2}
    [apart] = _with_separate_first_call(editor, request, sparse=True)
    assert torch.equal(shared.image, apart)


def _with_separate_first_call(editor, request, sparse=False):
    sampler = sampler_module.Sampler
    original = sampler._first_step_is_shared
    sampler._first_step_is_shared = lambda self, job: False
    try:
        return edits(editor, [request], sparse=sparse)
    finally:
        sampler._first_step_is_shared = original


@pytest.mark.parametrize("steps", [4, 8])
def test_each_image_of_a_batch_is_what_it_is_alone(editor, count, steps):
    """Regions, styles and numbers of computed tokens are each image's own."""
    small = torch.zeros(64, 64)
    small[40:56, 40:56] = 1
    regions = (small, half(), torch.zeros(64, 64), torch.ones(64, 64))
    styles = ("pixel-art", "lines", "lines", "pixel-art")
    requests = [
        EditRequest("dog", style, regions=(region,))
        for style, region in zip(styles, regions, strict=True)
    ]
    four = [image(seed) for seed in range(4)]
    how = {"sparse": True, "steps": steps}
    together = results(editor, requests, four, **how)
    assert count == {"full": sum(FULL[steps]), "partial": 2 * steps - sum(FULL[steps][:2])}
    for one, request, source in zip(together, requests, four, strict=True):
        [alone] = results(editor, [request], [source], **how)
        torch.testing.assert_close(one.image, alone.image, atol=1e-5, rtol=1e-5)
        assert one.settings["sparse"] is alone.settings["sparse"]
    assert [one.settings["sparse"] for one in together] == [True, True, False, False]
    assert torch.equal(together[2].image, four[2])
    [dense] = edits(editor, requests[3:], four[3:], sparse=False, steps=steps)
    torch.testing.assert_close(together[3].image, dense, atol=1e-5, rtol=1e-5)


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


def test_a_plain_edit_of_a_given_region_computes_that(editor, count):
    request = EditRequest("dog", "pixel-art", regions=(half(),))
    how = {"mode": "plain", "lock_background": True}
    [dense] = edits(editor, [request], sparse=False, **how)
    [sparse] = edits(editor, [request], sparse=True, **how)
    assert count == {"full": 2, "partial": STEPS - 2}
    assert torch.equal(sparse[:, :, 16:], image()[:, :, 16:])
    inside = dense[:, :, :16] - image()[:, :, :16]
    assert (sparse - dense)[:, :, :16].square().mean() < 0.3 * inside.square().mean()
    everywhere = EditRequest("dog", "pixel-art", regions=(torch.ones(64, 64),))
    [dense], [sparse] = (edits(editor, [everywhere], sparse=on, **how) for on in (False, True))
    assert torch.equal(dense, sparse)
    nowhere = EditRequest("dog", "pixel-art", regions=(torch.zeros(64, 64),))
    count.update(full=0, partial=0)
    [same] = edits(editor, [nowhere], sparse=True, **how)
    assert torch.equal(same, image())
    assert count == {"full": 0, "partial": 0}


def test_a_plain_edit_of_a_given_region_reads_its_map_in_the_first_call(editor, count):
    request = EditRequest("dog", "pixel-art", regions=(half(),))
    options = EditOptions(STEPS, mode="plain", lock_background=True, sparse=True)
    with_map = editor.edit(image(), request, options, want_map=True)
    assert count == {"full": 2, "partial": STEPS - 2}
    assert 0 <= with_map.region_map.min() < with_map.region_map.max() <= 1
    without = editor.edit(image(), request, options)
    torch.testing.assert_close(with_map.image, without.image, atol=1e-5, rtol=1e-5)


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
    assert is_sparse(mode="plain", lock_background=True) is False
    assert is_sparse(mode="plain", lock_background=True, sparse=True) is True
    for whole_or_closed in (torch.ones(64, 64), torch.zeros(64, 64)):
        request = EditRequest("dog", "pixel-art", regions=(whole_or_closed,))
        assert is_sparse(sparse=True) is False  # no call is partial


def test_rows_that_do_not_fit_are_not_stored(editor, monkeypatch, caplog):
    """Silently it is neither refused nor dense: an error if asked for, else metadata and a line."""
    monkeypatch.setattr(sparse_module, "MIN_TOKENS", 16)
    request = EditRequest("dog", "pixel-art", regions=(half(),))
    [dense] = edits(editor, [request], sparse=False)
    needed = row_cache_bytes(editor.backbone.transformer.config, all_tokens(editor), 4)
    monkeypatch.setattr(sparse_module, "free_bytes", lambda _: needed / LIMIT)
    [result] = results(editor, [request])
    assert result.settings["sparse"] is True
    assert "dense_because" not in result.settings
    editor.memory_share = 0.5  # one of two workers
    [result] = results(editor, [request])
    assert result.settings["sparse"] is False
    assert "GiB" in result.settings["dense_because"]
    assert torch.equal(result.image, dense)
    assert "every token is computed" in caplog.text
    with pytest.raises(UserError, match="leave sparse out"):
        edits(editor, [request], sparse=True)


def test_a_batch_that_does_not_fit_is_done_in_parts(editor, monkeypatch):
    requests = [EditRequest("dog", "pixel-art", regions=(half(),), seed=i) for i in range(3)]
    together = edits(editor, requests, sparse=True)
    needed = row_cache_bytes(editor.backbone.transformer.config, all_tokens(editor), 4)
    monkeypatch.setattr(sparse_module, "free_bytes", lambda _: 2.5 * needed / LIMIT)
    in_parts = results(editor, requests, sparse=True)
    for one, part in zip(together, in_parts, strict=True):
        torch.testing.assert_close(one, part.image, atol=1e-5, rtol=1e-5)
        assert part.settings["sparse"] is True


def test_what_is_free_is_what_the_networks_leave(editor, tmp_path, monkeypatch):
    """What other programs take does not count."""
    weights = sum(x.nbytes for part in editor.backbone.networks() for x in part.parameters())
    memory = tmp_path / "meminfo"
    memory.write_text("MemTotal:  1000000 kB\nMemAvailable: 5 kB\n")
    monkeypatch.setattr(sparse_module, "_MEMORY", memory)
    monkeypatch.setattr(sparse_module, "_CONTAINER", tmp_path / "memory.max")
    assert sparse_module.free_bytes(editor.backbone) == 1024e6 - weights
    (tmp_path / "memory.max").write_text("512000000\n")
    assert sparse_module.free_bytes(editor.backbone) == 512e6 - weights


def test_where_the_memory_is_unknown_everything_fits(editor, tmp_path, monkeypatch):
    """As on macOS and Windows."""
    monkeypatch.setattr(sparse_module, "_MEMORY", tmp_path / "none")
    monkeypatch.setattr(sparse_module, "_CONTAINER", tmp_path / "none")
    options = editor.resolved(EditOptions(mode="routed", steps=4, sparse=True))
    found = sparse_module.images_at_once(editor.backbone, options, (64, 64), 1, False, 1.0)
    assert found == (sparse_module.MOST_AT_ONCE, None)


def test_what_is_stored_is_what_was_estimated(editor, monkeypatch):
    caches = []
    monkeypatch.setattr(sparse_module, "RowCache", lambda: caches.append(RowCache()) or caches[-1])
    edits(editor, [EditRequest("dog", "pixel-art", regions=(half(),))], sparse=True)
    config = editor.backbone.transformer.config
    assert sum(cache.nbytes for cache in caches) == row_cache_bytes(config, all_tokens(editor), 4)


def test_the_tokens_of_a_region():
    gates = torch.zeros(2, 8, 8)
    gates[0, 3, 3], gates[1, 0, 0], gates[1, 7, 7] = 1.0, 0.04, 0.06
    [middle, corner] = map(region_of, gates)  # a ring around a token
    assert sorted(set(middle.rows.tolist())) == [18, 19, 20, 26, 27, 28, 34, 35, 36]
    assert sorted(set(corner.rows.tolist())) == [54, 55, 62, 63]
    assert middle.open.sum() == 9
    assert len(middle.rows) == 10  # padded to an even number: 32 sizes
    assert middle.rows[-1] == 36
    assert len(region_of(gates[0], ring=2).rows) == 26
    assert not middle.whole
    assert not middle.empty
    assert region_of(torch.ones(8, 8)).whole
    assert region_of(torch.zeros(8, 8)).empty


@pytest.mark.parametrize(
    ("steps", "kinds"),
    [
        (1, "f"), (2, "fl"), (4, "fwwl"), (8, "fwwwwfwl"),
        (28, "f" + 17 * "p" + "f" + 8 * "w" + "l"),
    ],
)  # fmt: skip
def test_what_the_calls_of_the_steps_compute(steps, kinds):
    assert "".join(kind[0] for kind in schedule(steps)) == kinds


def test_quality_is_what_the_calls_compute(editor):
    assert (
        "".join(k[0] for k in schedule(28, "high")) == "f" + 9 * "p" + "f" + 7 * "p" + "fwwwwwfwwl"
    )
    kinds = {q: "".join(k[0] for k in schedule(8, q)) for q in ("fast", "balanced", "high")}
    assert kinds == {"fast": "fppppfpl", "balanced": "fwwwwfwl", "high": "fwwwwfwf"}
    request = EditRequest("dog", "pixel-art", regions=(half(),))
    [dense] = edits(editor, [request], sparse=False)
    found = [results(editor, [request], sparse=True, sparse_quality=q)[0] for q in kinds]
    assert [one.settings["sparse_quality"] for one in found] == list(kinds)
    errors = [float((one.image - dense).square().mean()) for one in found]
    assert len(set(errors)) == 3
    assert 0 < max(errors) < 0.05 * (dense - image()).square().mean()
    with pytest.raises(UserError, match="must be one of fast, balanced, high"):
        edits(editor, [request], sparse_quality="best")


@pytest.mark.parametrize("regions", [(), (half(),)])
def test_plain_edits_without_a_region_are_not_sparse(editor, regions):
    request = EditRequest("dog", "pixel-art", regions=regions)
    with pytest.raises(UserError, match="region map and a locked background"):
        edits(editor, [request], mode="plain", sparse=True, lock_background=not regions)
