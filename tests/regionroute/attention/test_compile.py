"""Recording with torch.compile on: the same numbers, and no compilation without need."""

import contextlib
import shutil

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch._dynamo.utils import counters

from regionroute.attention import AttentionPlan, AttentionRecorder, focus_loss, mean_map

TEXT, SIDE, BATCH = 6, 4, 3


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def build(blocks):
    torch.manual_seed(0)
    return (
        FluxTransformer2DModel(
            in_channels=16, num_layers=blocks, num_single_layers=blocks, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8), guidance_embeds=True,
        )
        .eval()
        .requires_grad_(False)
    )  # fmt: skip


@pytest.fixture
def flux():
    """One block of a kind: compiling takes the time here."""
    return build(1)


@pytest.fixture
def plan():
    tokens = torch.tensor([[[1, 2], [4, -1]], [[3, -1], [-1, -1]], [[0, 5], [2, 3]]])
    masks = torch.rand(BATCH, 2, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    return AttentionPlan(tokens, masks, torch.ones(BATCH, 2, dtype=torch.bool), TEXT, SIDE**2)


def compiled(flux, how, backend):
    """The transformer compiled as a wrapper, in place, or block by block."""
    if how == "wrapper":
        return torch.compile(flux, backend=backend)
    if how == "in place":
        flux.compile(backend=backend)
    else:
        flux.compile_repeated_blocks(backend=backend)
    return flux


def step(model, flux, inputs, plan, recorder):
    """Output, gradients, and maps where there is a recorder."""
    weights = [p for n, p in flux.named_parameters() if n.endswith(("to_q.weight", "to_k.weight"))]
    for weight in weights:
        weight.requires_grad_()
    with recorder.recording(model, plan) if recorder else contextlib.nullcontext():
        out = model(**inputs)[0]
        loss = out.square().mean()
        if recorder:
            loss = loss + focus_loss(mean_map(recorder.maps()), plan.masks, plan.valid).sum()
        gradients = torch.autograd.grad(loss, weights)
    return [out, *gradients, *(recorder.maps().values() if recorder else ())]


def assert_close(found, expected, tolerance):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * b.abs().max().item())


def graphs():
    return counters["stats"]["unique_graphs"]


def check(flux, inputs, plan, how, backend, tolerance=1e-6):
    wanted = {
        on: step(flux, flux, inputs, plan, AttentionRecorder() if on else None)
        for on in (False, True)
    }
    model = compiled(flux, how, backend)
    for on in (False, True, False, True):  # before, inside, after, again
        recorder = AttentionRecorder() if on else None
        assert_close(step(model, flux, inputs, plan, recorder), wanted[on], tolerance)
        before = graphs() if on else 0
    assert graphs() == before > 0


@pytest.mark.parametrize(
    ("how", "backend"),
    [
        ("wrapper", "eager"),
        ("blocks", "aot_eager"),
        pytest.param("in place", "eager", marks=pytest.mark.slow),
        pytest.param("wrapper", "aot_eager", marks=pytest.mark.slow),
    ],
)
def test_compiled_before_recording(flux, inputs, plan, how, backend):
    check(flux, inputs, plan, how, backend)


@pytest.mark.parametrize("how", [pytest.param("wrapper", marks=pytest.mark.slow), "blocks"])
def test_compiled_with_gradient_checkpointing(flux, inputs, plan, how):
    flux.enable_gradient_checkpointing()
    flux.train()
    check(flux, inputs, plan, how, "aot_eager")


def test_compiled_inside_recording(flux, inputs, plan):
    wanted = step(flux, flux, inputs, plan, AttentionRecorder())
    stock = step(flux, flux, inputs, plan, None)
    recorder = AttentionRecorder()
    with recorder.recording(flux, plan):
        model = torch.compile(flux, backend="eager")
        model(**inputs)
    assert_close(step(model, flux, inputs, plan, AttentionRecorder()), wanted, 1e-6)
    assert_close(step(model, flux, inputs, plan, None), stock, 1e-6)


def test_entering_again_with_another_recorder_and_plan_compiles_nothing(flux, inputs, plan):
    model = compiled(flux, "blocks", "eager")
    other = AttentionPlan(
        plan.token_index[:, :1].clone(), plan.masks[:, :1], plan.valid[:, :1], TEXT, SIDE**2
    )
    layers = ["double.0:1", "single.0.context"]
    with torch.no_grad():
        first = AttentionRecorder()
        for context in (contextlib.nullcontext, lambda: first.recording(model, plan)) * 2:
            known = graphs()
            with context():
                model(**inputs)
        for recorder, its_plan in ((AttentionRecorder(layers), other), (first, plan)):
            with recorder.recording(model, its_plan):
                model(**inputs)
            model(**inputs)
    assert graphs() == known


def test_the_number_of_compilations_does_not_grow_with_the_blocks(inputs, plan):
    """Beyond eight versions of a function the compiler gives up; Flux has 19 and 38 blocks."""
    counts = []
    for blocks in (2, 10):
        torch.compiler.reset()
        counters.clear()
        model = compiled(build(blocks), "blocks", "eager")
        with torch.no_grad(), AttentionRecorder().recording(model, plan):
            model(**inputs)
        counts.append(graphs())
    assert counts[0] == counts[1] > 0


def test_fullgraph_says_what_to_do(flux, inputs, plan):
    model = torch.compile(flux, backend="eager", fullgraph=True)
    model(**inputs)
    with (
        AttentionRecorder().recording(model, plan),
        pytest.raises(torch._dynamo.exc.Unsupported, match="compile without fullgraph=True"),
    ):
        model(**inputs)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("how", ["wrapper", "blocks"])
def test_inductor(flux, inputs, plan, how, checkpointing):
    if checkpointing:
        flux.enable_gradient_checkpointing()
        flux.train()
    check(flux, inputs, plan, how, "inductor", 1e-4)
