import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import FluxKontextPipeline
from safetensors.torch import load_file, save_file

from regionroute.adapters import (
    RouteContext,
    adapter_layers,
    adapter_parameters,
    expert_state_dict,
    inject,
    load_expert_state_dict,
    load_experts,
    read_registry,
    routed,
    save_experts,
)
from regionroute.data.manifest import StyleSpec
from regionroute.errors import UserError

STYLES = [StyleSpec("pixel-art", "pixel art"), StyleSpec("line-art"), StyleSpec("oil / thick")]
FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture
def saved(adapted, tmp_path):
    save_experts(
        tmp_path,
        adapted,
        STYLES,
        base_name="tiny",
        base_fingerprint="abc",
        extra={"map_layers": ["double.1"]},
    )
    return tmp_path


def base(flux, fingerprint="abc"):
    return SimpleNamespace(name="other", fingerprint=fingerprint, transformer=flux)


def run(flux, inputs, expert):
    with torch.no_grad(), routed(flux, RouteContext(torch.full((3,), expert))):
        return flux(**inputs)[0]


def stock_pipeline(flux):
    """A real pipeline as far as LoRA loading is concerned."""
    parts = dict.fromkeys(
        ["scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"]
    )
    return FluxKontextPipeline(transformer=flux, **parts)


@pytest.mark.parametrize("expert", [0, 2])
def test_a_stock_pipeline_computes_the_same(adapted, saved, make_flux, inputs, expert):
    pipeline = stock_pipeline(make_flux())
    folder = saved / read_registry(saved).experts[expert].file
    pipeline.load_lora_weights(folder.parent)
    with torch.no_grad():
        stock = pipeline.transformer(**inputs)[0]
    ours = run(adapted, inputs, expert)
    torch.testing.assert_close(stock, ours, rtol=0, atol=1e-5)
    assert (ours - make_flux()(**inputs)[0]).abs().max() > 1e-2
    config = pipeline.transformer.peft_config["default_0"]
    assert (config.r, config.lora_alpha) == (4, 6)
    assert set(config.target_modules) == set(adapter_layers(adapted))


def test_round_trip(adapted, saved, make_flux, inputs):
    flux = make_flux()
    registry = load_experts(saved, base(flux))
    assert registry.styles == STYLES
    assert registry.index("Pixel Art") == 0  # a phrase
    assert registry.extra == {"map_layers": ["double.1"]}
    for expert in range(3):
        assert torch.equal(run(flux, inputs, expert), run(adapted, inputs, expert))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_lower_precision_saves_its_bits_and_computes_nearly_the_same(
    make_flux, inputs, tmp_path, dtype
):
    adapted = make_flux()
    generator = torch.Generator().manual_seed(3)
    inject(adapted, "regionroute", 3, 4, 6.0, shared_rank=2, generator=generator)
    with torch.no_grad():  # the shared expert too, which is in the router's file as well
        for parameter in adapter_parameters(adapted):
            parameter.normal_(0, 0.1, generator=generator)
    sizes = {}
    for name, precision in (("full", torch.float32), ("low", dtype)):
        save_experts(
            tmp_path / name, adapted, STYLES, base_name="tiny", base_fingerprint="abc",
            dtype=precision,
        )  # fmt: skip
        state = load_file(tmp_path / name / "line-art" / FILE)
        sizes[name] = sum(tensor.nbytes for tensor in state.values())
        assert {tensor.dtype for tensor in state.values()} == {precision}
    assert sizes["low"] * 4 == sizes["full"] * dtype.itemsize
    flux = make_flux()
    load_experts(tmp_path / "low", base(flux))
    assert all(parameter.dtype == torch.float32 for parameter in adapter_parameters(flux))
    assert torch.allclose(run(flux, inputs, 1), run(adapted, inputs, 1), atol=5e-2)
    again = tmp_path / "again"  # nothing more is lost
    save_experts(again, flux, STYLES, base_name="tiny", base_fingerprint="abc", dtype=dtype)
    for name in ("router.safetensors", f"line-art/{FILE}"):
        assert (again / name).read_bytes() == (tmp_path / "low" / name).read_bytes()


def test_state_dicts_round_trip_and_touch_one_expert(adapted, make_adapted):
    other = make_adapted()
    state = {name: x + 1 for name, x in expert_state_dict(adapted, 2).items()}
    assert state["transformer.single_transformer_blocks.0.attn.to_k.lora_B.weight"].shape == (32, 4)
    load_expert_state_dict(other, 0, state)
    for name, x in expert_state_dict(other, 0).items():
        assert torch.equal(x, state[name])
    for name, x in expert_state_dict(other, 1).items():
        assert torch.equal(x, expert_state_dict(adapted, 1)[name])
    with pytest.raises(ValueError, match="no expert 3"):
        expert_state_dict(adapted, 3)


def test_saving_needs_as_many_styles_as_experts_and_distinct_folders(adapted, tmp_path):
    options = {"base_name": "tiny", "base_fingerprint": "abc"}
    with pytest.raises(ValueError, match="3 experts cannot be saved as 2"):
        save_experts(tmp_path, adapted, STYLES[:2], **options)
    clash = [StyleSpec("ink"), StyleSpec("oil paint"), StyleSpec("Oil/Paint")]
    with pytest.raises(UserError, match='"Oil/Paint" and another'):
        save_experts(tmp_path, adapted, clash, **options)
    assert list(tmp_path.iterdir()) == []


def edit_json(change):
    def apply(folder):
        values = json.loads((folder / "experts.json").read_text())
        change(values)
        (folder / "experts.json").write_text(json.dumps(values))

    return apply


def edit_weights(change, metadata=None):
    def apply(folder):
        path = folder / "line-art" / FILE
        state = load_file(path)
        change(state)
        scale = {"transformer.r": 4, "transformer.lora_alpha": 6.0} | (metadata or {})
        save_file(state, path, {"lora_adapter_metadata": json.dumps(scale)})

    return apply


KEY = "transformer.transformer_blocks.0.attn.to_q.lora_A.weight"
DAMAGES = {
    "no registry": (lambda f: (f / "experts.json").unlink(), "no experts.json here"),
    "not JSON": (lambda f: (f / "experts.json").write_text("{"), "not JSON"),
    "a list": (lambda f: (f / "experts.json").write_text("[]"), "experts.json: "),
    "newer": (edit_json(lambda v: v.update(schema=9)), "schema 9 is newer"),
    "unknown key": (edit_json(lambda v: v.update(rnak=4)), "rnak"),
    "no experts": (edit_json(lambda v: v.update(experts=[])), "experts: "),
    "escape": (edit_json(lambda v: v["experts"][0].update(file="../x")), "must lie inside"),
    "style twice": (
        edit_json(lambda v: v["experts"].append({**v["experts"][0], "style": "PIXEL-art"})),
        r'experts\.json: the style "pixel-art" has more than one entry, fix or export',
    ),
    "other base": (
        edit_json(lambda v: v.update(fingerprint="x")),
        'trained on base "tiny" .*"other"',
    ),
    "other alpha": (edit_json(lambda v: v.update(alpha=4)), "4 and 6"),
    "other rank": (edit_json(lambda v: v.update(rank=2)), r"is \[4, 32\], expected \[2, 32\]"),
    "no file": (lambda f: (f / "line-art" / FILE).unlink(), f"line-art/{FILE}: no such LoRA"),
    "damaged": (lambda f: (f / "line-art" / FILE).write_bytes(b"x" * 99), "damaged"),
    "missing": (edit_weights(lambda s: s.pop(KEY)), f'1 weights are missing, first "{KEY}"'),
    "extra": (edit_weights(lambda s: s.update(x=torch.ones(1))), "1 weights have no place.*x"),
    "shape": (edit_weights(lambda s: s.update({KEY: torch.ones(4, 31)})), r"\[4, 31\], expected"),
    "scale": (edit_weights(lambda s: None, {"transformer.r": 8}), "in the file are 8 and 6"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_the_model_stays_as_it_was(saved, flux, damage):
    apply, message = DAMAGES[damage]
    apply(saved)
    with pytest.raises(UserError, match=message) as caught:
        load_experts(saved, base(flux))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no adapted layers"):
        adapter_layers(flux)


def test_a_name_wins_over_a_phrase_of_another_expert(saved):
    edit_json(lambda v: v["experts"][0].update(style="ink", phrase="Line-Art"))(saved)
    registry = read_registry(saved)
    assert [registry.index(style) for style in ("line-art", "LINE-ART", "ink")] == [1, 1, 0]
    edit_json(lambda v: v["experts"][1].update(style="lines"))(saved)
    assert read_registry(saved).index("line-art") == 0


def test_unknown_styles_name_the_nearest(saved):
    with pytest.raises(UserError, match='style "pixle-art", the nearest is "pixel-art"'):
        read_registry(saved).index("pixle-art")


def test_a_failed_save_leaves_the_older_file(adapted, saved, monkeypatch):
    before = (saved / "line-art" / FILE).read_bytes()

    def fail(state, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("regionroute.adapters.files.lora_file.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_experts(saved, adapted, STYLES, base_name="tiny", base_fingerprint="abc")
    assert (saved / "line-art" / FILE).read_bytes() == before
    files = {p.name for p in saved.rglob("*") if p.is_file()}
    assert files == {FILE, "experts.json", "README.md"}
