"""Experts in float8: stored, loaded here and by stock programs, written for others."""

import logging
from types import SimpleNamespace

import pytest
import torch
from diffusers import FluxKontextPipeline
from safetensors.torch import load_file, save_file

from regionroute.adapters import (
    RouteContext,
    SimilarityRouter,
    adapter_layers,
    adapter_parameters,
    import_lora,
    inject,
    load_experts,
    routed,
    save_experts,
)
from regionroute.adapters.files.export import expert_names
from regionroute.adapters.files.formats import FORMATS, read_blend, write_lora
from regionroute.adapters.files.lora_file import read_lora_file
from regionroute.adapters.files.precision import change, rounded
from regionroute.data.manifest import StyleSpec
from regionroute.errors import UserError

FLOAT8 = torch.float8_e4m3fn
STYLES = [StyleSpec("ink"), StyleSpec("oil"), StyleSpec("wax")]
FILE = "pytorch_lora_weights.safetensors"
PARTS = ["scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"]


def adapted(flux, router=None, size=0.1):
    generator = torch.Generator().manual_seed(3)
    inject(flux, "styleexpert", 3, 4, 6.0, shared_rank=2, router=router, generator=generator)
    with torch.no_grad():
        for parameter in adapter_parameters(flux):
            parameter.normal_(0, size, generator=generator)
    return flux


def save(flux, folder, styles=STYLES):
    return save_experts(
        folder, flux, styles, base_name="tiny", base_fingerprint="abc", dtype=FLOAT8
    )


def base(flux):
    return SimpleNamespace(name="other", fingerprint="abc", transformer=flux)


@pytest.fixture
def ours(make_flux, tmp_path):
    """A transformer with experts that were loaded from float8, and their folder."""
    save(adapted(make_flux()), tmp_path)
    flux = make_flux()
    load_experts(tmp_path, base(flux))
    return flux, tmp_path


def run(flux, inputs, expert):
    with torch.no_grad(), routed(flux, RouteContext(torch.full((3,), expert))):
        return flux(**inputs)[0]


def plain(flux, inputs):
    with torch.no_grad():
        return flux(**inputs)[0]


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_a_stock_pipeline_computes_the_same(ours, make_flux, inputs, low_cpu_mem_usage):
    flux, folder = ours
    assert {x.dtype for x in load_file(folder / "oil" / FILE).values()} == {FLOAT8}
    pipeline = FluxKontextPipeline(transformer=make_flux(), **dict.fromkeys(PARTS))
    pipeline.load_lora_weights(folder / "oil", low_cpu_mem_usage=low_cpu_mem_usage)
    expected = run(flux, inputs, 1)
    torch.testing.assert_close(plain(pipeline.transformer, inputs), expected, rtol=0, atol=1e-5)
    assert (expected - plain(make_flux(), inputs)).abs().max() > 1e-2


@pytest.mark.parametrize("form", FORMATS)
def test_files_of_other_programs_have_the_same_values_in_float16(
    ours, make_flux, inputs, tmp_path, form
):
    flux, folder = ours
    file = write_lora(read_blend(folder, {"oil": 1.0}), tmp_path / "out", "oil", form)
    weights = {key: x for key, x in load_file(file).items() if not key.endswith(".alpha")}
    assert {x.dtype for x in weights.values()} == {torch.float16}
    again = make_flux()
    inject(again, "styleexpert", 1, 6, 9.0)
    import_lora(file.parent if form == "peft" else file, again, 0)
    torch.testing.assert_close(run(again, inputs, 0), run(flux, inputs, 1), rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", [FLOAT8, torch.float8_e5m2])
def test_a_strangers_float8_file_is_imported(make_flux, tmp_path, dtype):
    flux, name = make_flux(), "transformer_blocks.0.attn.to_q"
    inject(flux, "regionroute", 1, 4, 4.0)
    state = {f"transformer.{name}.lora_{s}.weight": torch.randn(4, 32).to(dtype) for s in "AB"}
    key = f"transformer.{name}.lora_B.weight"
    state[key] = state[key].T.contiguous()
    save_file(state, tmp_path / "one.safetensors")
    import_lora(tmp_path / "one.safetensors", flux, 0)
    assert torch.equal(adapter_layers(flux)[name].lora_B[0], state[key].float())
    tensors, _ = read_lora_file(tmp_path / "one.safetensors", upcast=False)
    assert tensors[key].dtype == dtype


def test_gates_keep_sixteen_bits(make_flux, tmp_path):
    save(adapted(make_flux(), lambda: SimilarityRouter(6, 3, 2)), tmp_path, expert_names(3))
    state = load_file(tmp_path / "router.safetensors")
    kinds = {key.rpartition(".to_q.")[2]: x.dtype for key, x in state.items() if ".to_q." in key}
    half = torch.float16
    assert kinds == {"shared_A": FLOAT8, "shared_B": FLOAT8, "router.gate.weight": half}
    load_experts(tmp_path, base(make_flux()))


@pytest.mark.parametrize(
    ("dtype", "value", "name"), [(FLOAT8, 449.0, "float8"), (torch.float16, -7e4, "float16")]
)
def test_values_out_of_range_are_refused_and_the_older_files_stay(
    make_flux, tmp_path, dtype, value, name
):
    flux = adapted(make_flux())
    save(flux, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    layer = adapter_layers(flux)["transformer_blocks.0.attn.to_q"]
    layer.lora_B.data[2, 0, 0] = value
    with pytest.raises(UserError, match=rf"wax/.*to_q.*{abs(value):g}.*{name} ends at"):
        save_experts(tmp_path, flux, STYLES, base_name="tiny", base_fingerprint="abc", dtype=dtype)
    assert {path: path.read_bytes() for path in before} == before


def test_the_largest_value_is_in_range():
    state = {"x": torch.tensor([448.0, -448.0])}
    assert torch.equal(rounded(state, FLOAT8, "")["x"].float(), state["x"])


@pytest.mark.parametrize(("size", "warned"), [(0.1, False), (0.003, True), (0.0, False)])
def test_weights_too_small_for_the_precision_are_noticed(make_flux, tmp_path, caplog, size, warned):
    with caplog.at_level(logging.WARNING):
        save(adapted(make_flux(), size=size), tmp_path)
    assert ("too small for this precision" in caplog.text) == warned


def test_the_change_is_that_of_the_products():
    torch.manual_seed(0)
    one, two = (
        {f"{n}.lora_{s}.weight": torch.randn(shape) for n in "xy" for s, shape in sides}
        for sides in ([("A", (3, 8)), ("B", (5, 3))], [("A", (2, 8)), ("B", (5, 2))])
    )

    def products(state):
        return torch.stack(
            [state[f"{n}.lora_B.weight"] @ state[f"{n}.lora_A.weight"] for n in "xy"]
        )

    expected = (products(one) - products(two)).norm() / products(one).norm()
    assert change(one, two) == pytest.approx(expected.item(), rel=1e-5)
    assert change(one, one) < 1e-7
