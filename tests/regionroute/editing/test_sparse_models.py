"""Region-sparse sampling of quantized and compiled bases, routed experts, and how much it saves."""

import pytest
import torch
from torch._dynamo.utils import counters

from regionroute.editing.editor import Editor
from regionroute.editing.request import EditOptions, EditRequest
from regionroute.editing.sparse import LAST_RING, region_of, schedule
from regionroute.models.loading import load_base
from regionroute.routing.gates import gates_on_grid, widen_gates

STEPS, SIDE = 8, 8  # tokens along each side
ONES = torch.ones(64, 64)


def square(top, left, size):
    """A region of tokens."""
    region = torch.zeros(64, 64)
    region[8 * top : 8 * (top + size), 8 * left : 8 * (left + size)] = 1
    return region


CORNER, OTHER, MIDDLE = square(0, 0, 2), square(5, 5, 3), square(3, 2, 2)


def image(seed=0):
    return torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(seed))


def with_experts(backbone, experts):
    editor = Editor(backbone, experts)
    editor.routing = editor.routing.model_copy(update={"branch": "expert", "prompt": "object"})
    return editor


@pytest.fixture
def editor(tiny_backbone, tiny_experts):
    return with_experts(tiny_backbone, tiny_experts)


def edit(editor, *regions, sparse, steps=STEPS, **how):
    """An image with an object in each region."""
    also = (("cup", "lines"), ("fox", "pixel-art"))[: len(regions) - 1]
    request = EditRequest("dog", "pixel-art", also=also, regions=regions)
    options = EditOptions(steps, mode="routed", sparse=sparse, **how)
    return editor.edit(image(), request, options).image


def is_near(editor, **how):
    """The whole image as region: equal to the dense edit to the bit; a corner: close to it."""
    dense, sparse = (edit(editor, ONES, sparse=on, **how) for on in (False, True))
    assert torch.equal(dense, sparse)
    dense, sparse = (edit(editor, CORNER, sparse=on, **how) for on in (False, True))
    changed = (dense - image()).square().mean()
    assert changed > 1e-5
    return (sparse - dense).square().mean() < 0.05 * changed


@pytest.mark.parametrize("how", [{"dtype": torch.bfloat16}, {"quantize": "nf4"}])
@pytest.mark.parametrize("folder", ["tiny_base", "tiny_klein"])
def test_low_precision(request, folder, how):
    if "quantize" in how:
        pytest.importorskip("bitsandbytes")
    editor = Editor(load_base(str(request.getfixturevalue(folder)), **how))
    assert is_near(editor, guidance=3.0)


OF_A_SIZE = [square(0, 0, 2), square(0, 6, 2), square(6, 6, 2)]


def test_regions_are_padded_to_few_sizes(editor):
    assert {len(region_of(_gate(editor, one)).rows) for one in OF_A_SIZE} == {16}


@pytest.mark.slow
def test_a_compiled_base_meets_a_region_of_that_size_before(editor):
    """Regions are padded to few sizes: others of about as many tokens compile nothing."""
    wanted = [edit(editor, one, sparse=True, steps=4) for one in OF_A_SIZE]
    torch.compiler.reset()
    counters.clear()
    editor.backbone.transformer.compile_repeated_blocks(backend="eager")
    graphs = []
    for one, plain in zip(OF_A_SIZE, wanted, strict=True):
        found = edit(editor, one, sparse=True, steps=4)
        torch.testing.assert_close(found, plain, atol=1e-4, rtol=1e-4)
        graphs.append(counters["stats"]["unique_graphs"])
    torch.compiler.reset()
    assert graphs[0] > 0
    assert graphs == graphs[:1] * len(OF_A_SIZE)


def _gate(editor, region):
    grid = gates_on_grid(region[None, None], (SIDE, SIDE))
    return widen_gates(grid, editor.routing)[0, 0]


def computed(editor, run):
    """Image tokens that the transformer is given."""
    tokens = []
    hook = editor.backbone.transformer.register_forward_pre_hook(
        lambda _, args, given: tokens.append(given["hidden_states"].shape[:2].numel()),
        with_kwargs=True,
    )
    run()
    hook.remove()
    return sum(tokens)


def expected(editor, region):
    """Image tokens of the schedule's calls for one branch."""
    gate = _gate(editor, region)
    rows, last = (len(region_of(gate, ring=ring).rows) for ring in (1, LAST_RING))
    each = {"full": 2 * SIDE**2, "partial": rows, "wide": 2 * rows, "local": 2 * last}
    return sum(each[kind] for kind in schedule(STEPS))


@pytest.mark.parametrize("regions", [(CORNER,), (CORNER, OTHER), (CORNER, OTHER, MIDDLE)])
def test_an_edit_computes_its_regions(editor, regions):
    """Each object has calls of its own, whatever the others cover."""
    dense = computed(editor, lambda: edit(editor, *regions, sparse=False))
    assert dense == len(regions) * STEPS * 2 * SIDE**2
    sparse = computed(editor, lambda: edit(editor, *regions, sparse=True))
    if len(regions) == 1:
        assert sparse == expected(editor, CORNER)
    assert sparse < 0.7 * dense


def test_each_image_of_a_batch_computes_its_region(editor):
    regions = (CORNER, OTHER, torch.zeros(64, 64), ONES)
    requests = [EditRequest("dog", "pixel-art", regions=(region,)) for region in regions]
    options = EditOptions(STEPS, mode="routed", sparse=True)
    images = [image(seed) for seed in range(4)]
    sparse = computed(editor, lambda: editor.edit_batch(images, requests, options))
    alone = [expected(editor, region) for region in regions[:2]]
    assert sparse == sum(alone) + STEPS * 2 * SIDE**2


def test_guidance_computes_the_region_twice(tiny_klein):
    editor = Editor(load_base(str(tiny_klein)))
    editor.routing = editor.routing.model_copy(update={"prompt": "object"})
    found = computed(editor, lambda: edit(editor, CORNER, sparse=True, guidance=3.0))
    assert found == 2 * expected(editor, CORNER)
