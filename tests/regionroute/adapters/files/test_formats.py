"""Saved experts as files of other programs: each is read back by its own program or its rules."""

import re

import pytest
import torch
from diffusers import FluxKontextPipeline
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from regionroute.adapters import (
    FixedRouter,
    RouteContext,
    adapter_layers,
    import_lora,
    inject,
    routed,
    save_experts,
)
from regionroute.adapters.files.compress import compress
from regionroute.adapters.files.formats import Lora, read_blend, to_original, write_lora
from regionroute.adapters.files.lora_names import modules_of, original_name
from regionroute.data.manifest import StyleSpec
from regionroute.errors import UserError

STYLES = [StyleSpec("ink"), StyleSpec("oil paint"), StyleSpec("wax")]
BLEND = {"ink": 0.7, "wax": 0.5}


def adapted(flux, targets="styleexpert", shared_rank=2):
    generator = torch.Generator().manual_seed(3)
    inject(flux, targets, 3, 4, 6.0, shared_rank=shared_rank, generator=generator)
    for layer in adapter_layers(flux).values():
        for name, parameter in layer.named_parameters():
            if name in ("lora_B", "shared_B"):
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return flux


@pytest.fixture(params=["regionroute", "styleexpert", "all"])
def experts(request, make_flux, tmp_path):
    flux = adapted(make_flux(), request.param, 0 if request.param == "regionroute" else 2)
    save_experts(tmp_path / "experts", flux, STYLES, base_name="tiny", base_fingerprint="abc")
    return flux, tmp_path / "experts"


def run(flux, inputs, weights):
    with torch.no_grad(), routed(flux, RouteContext(router=FixedRouter(torch.tensor(weights)))):
        return flux(**inputs)[0]


def plain(flux, inputs):
    with torch.no_grad():
        return flux(**inputs)[0]


@pytest.mark.parametrize("weights", [{"oil paint": 1.0}, BLEND])
def test_every_form_is_read_back_by_its_program(experts, make_flux, inputs, tmp_path, weights):
    flux, folder = experts
    expected = run(flux, inputs, [weights.get(style.name, 0.0) for style in STYLES])
    lora = read_blend(folder, weights)
    diffusers, peft, comfyui = (
        write_lora(lora, tmp_path / form, "my style", form, base="some/base")
        for form in ("diffusers", "peft", "comfyui")
    )
    parts = ["scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"]
    pipeline = FluxKontextPipeline(transformer=make_flux(), **dict.fromkeys(parts))
    pipeline.load_lora_weights(diffusers.parent)
    exact = {"rtol": 0, "atol": 2e-5}
    torch.testing.assert_close(plain(pipeline.transformer, inputs), expected, **exact)
    model = PeftModel.from_pretrained(make_flux(), peft.parent)
    assert model.peft_config["default"].base_model_name_or_path == "some/base"
    torch.testing.assert_close(plain(model, inputs), expected, **exact)
    assert comfyui == tmp_path / "comfyui" / "my-style.safetensors"
    assert (plain(make_flux(), inputs) - expected).abs().max() > 1e-2
    for file in (diffusers, peft.parent, comfyui):
        again = make_flux()
        inject(again, "all", 1, lora.rank, 1.0)
        import_lora(file, again, 0)
        torch.testing.assert_close(run(again, inputs, [1.0]), expected, **exact)


def test_a_lone_expert_is_its_own_file(experts):
    _, folder = experts
    lora = read_blend(folder, {"ink": 1.0})
    state = load_file(folder / "ink" / "pytorch_lora_weights.safetensors")
    for name, pair in lora.pairs.items():
        for side, tensor in zip("AB", pair, strict=True):
            assert torch.equal(tensor, state[f"transformer.{name}.lora_{side}.weight"])


def real_lora(modules, rank=3):
    """A LoRA on layers of the real model's width."""
    generator = torch.Generator().manual_seed(1)
    pairs = {}
    for name in modules:
        inputs = {"proj_out": 15360, "ff.net.2": 12288}.get(name.split(".", 2)[-1], 3072)
        outputs = 12288 if name.endswith("proj_mlp") else 3072
        pairs[name] = (
            torch.randn(rank, inputs, generator=generator),
            torch.randn(outputs, rank, generator=generator),
        )
    return Lora(pairs, rank, 1.5)


@pytest.mark.parametrize(
    "modules",
    [
        ["single_transformer_blocks.3.attn.to_q", "single_transformer_blocks.3.attn.to_v"],
        ["single_transformer_blocks.0.proj_mlp", "single_transformer_blocks.0.attn.to_k"],
        ["transformer_blocks.18.attn.to_k", "transformer_blocks.18.attn.to_out.0"],
        ["transformer_blocks.0.attn.add_q_proj", "single_transformer_blocks.37.proj_out"],
        ["transformer_blocks.2.norm1.linear", "single_transformer_blocks.5.norm.linear"],
    ],
)
def test_diffusers_converter_of_real_sizes_gives_the_same_updates(modules):
    lora = real_lora(modules)
    converted = _convert_kohya_flux_lora_to_diffusers(to_original(lora))
    found = {re.sub(r"^transformer\.|\.lora_[AB]\.weight$", "", key) for key in converted}
    assert set(modules) <= found
    x = torch.randn(2, 15360)
    for name in found:
        a, b = (converted[f"transformer.{name}.lora_{side}.weight"] for side in "AB")
        update = x[:, : a.shape[1]] @ a.T @ b.T
        if name in lora.pairs:
            a, b = lora.pairs[name]
            expected = x[:, : a.shape[1]] @ a.T @ b.T * (lora.alpha / lora.rank)
            torch.testing.assert_close(update, expected, rtol=1e-4, atol=1e-2)
        else:
            assert (update == 0).all()


def test_the_layers_around_the_blocks_as_diffusers_converts_them():
    """Its converter knows that the original model's output has shift above scale."""
    names = ["norm_out.linear", "proj_out", "x_embedder", "context_embedder"]
    torch.manual_seed(0)
    pairs = {name: (torch.randn(2, 32), torch.randn(64, 2)) for name in names}
    state = to_original(Lora(pairs, 2, 2.0))  # it skips the alpha of the output: the scale is 1
    up = state["lora_unet_final_layer_adaLN_modulation_1.lora_up.weight"]
    b = pairs["norm_out.linear"][1]
    assert torch.equal(up, torch.cat([b[32:], b[:32]]))
    converted = _convert_kohya_flux_lora_to_diffusers(state)
    for name, (a, b) in pairs.items():
        assert torch.equal(converted[f"{name}.lora_A.weight"], a)
        assert torch.equal(converted[f"{name}.lora_B.weight"], b)


def test_comfyui_names_and_rows(experts):
    """By ComfyUI's rule: lora_unet_ and the original model's name with "_" for "."."""
    flux, folder = experts
    state = to_original(read_blend(folder, {"wax": 1.0}))
    layers = {key.split(".")[0] for key in state}
    original = {f"lora_unet_{original_name(name)}" for name in adapter_layers(flux)}
    assert layers == {name.replace(".", "_") for name in original}
    layer = "lora_unet_single_blocks_1_linear1"
    a, b = state[f"{layer}.lora_down.weight"], state[f"{layer}.lora_up.weight"]
    merged = b @ a * float(state[f"{layer}.alpha"]) / a.shape[0]
    assert merged.shape == (7 * 32, 32)
    adapters = adapter_layers(flux)
    for position, part in enumerate(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")):
        rows = merged[position * 32 : 7 * 32 if part == "proj_mlp" else (position + 1) * 32]
        module = adapters.get(f"single_transformer_blocks.1.{part}")
        expected = torch.zeros_like(rows)
        if module is not None:
            expert = module.expert_state_dict(2)
            expected = expert["lora_B.weight"] @ expert["lora_A.weight"] * 6 / 4
        torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("transformer.transformer_blocks.3.attn.to_out.0", ["transformer_blocks.3.attn.to_out.0"]),
        ("base_model.model.proj_out", ["proj_out"]),
        ("lora_unet_double_blocks_7_img_mlp_0", ["transformer_blocks.7.ff.net.0.proj"]),
        ("diffusion_model.single_blocks.11.linear2", ["single_transformer_blocks.11.proj_out"]),
        (
            "lora_transformer_single_transformer_blocks_4_attn_to_k",
            ["single_transformer_blocks.4.attn.to_k"],
        ),
        (
            "lora_unet_double_blocks_0_txt_attn_qkv",
            [f"transformer_blocks.0.attn.add_{x}_proj" for x in "qkv"],
        ),
        ("lora_unet_final_layer_linear", ["proj_out"]),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1",) * 2,
        ("transformer.transformer_blocks.0.nowhere", ["transformer_blocks.0.nowhere"]),
    ],
)
def test_names(name, modules):
    assert modules_of(name) == ([modules] if isinstance(modules, str) else modules)


def joined_lora(flux, rank=3):
    """A LoRA as sd-scripts trains it: one adapter over q, k and v together."""
    generator = torch.Generator().manual_seed(8)
    key = "lora_unet_double_blocks_1_img_attn_qkv"
    return {
        f"{key}.lora_down.weight": torch.randn(rank, 32, generator=generator),
        f"{key}.lora_up.weight": torch.randn(96, rank, generator=generator) * 0.1,
        f"{key}.alpha": torch.tensor(1.5),
    }


def test_a_joined_layer_is_cut(make_flux, tmp_path):
    state = joined_lora(make_flux())
    save_file(state, tmp_path / "joined.safetensors")
    flux = make_flux()
    inject(flux, "regionroute", 1, 4, 2.0)
    names = import_lora(tmp_path / "joined.safetensors", flux, 0)
    assert names == [f"transformer_blocks.1.attn.to_{x}" for x in "qkv"]
    a, b = (
        state[f"lora_unet_double_blocks_1_img_attn_qkv.lora_{w}.weight"] for w in ("down", "up")
    )
    for number, name in enumerate(names):
        layer = adapter_layers(flux)[name]
        update = layer.lora_B[0] @ layer.lora_A[0] * (layer.alpha / layer.rank)
        expected = b[32 * number : 32 * (number + 1)] @ a * (1.5 / 3)
        torch.testing.assert_close(update.detach(), expected)


def test_what_would_be_ignored_is_refused(make_flux, tmp_path):
    flux = make_flux()
    inject(flux, "regionroute", 1, 4, 2.0)
    path = tmp_path / "x.safetensors"
    a, b = torch.ones(2, 32), torch.ones(224, 2)
    cases = {
        "proj_mlp.*no experts here": {"lora_unet_single_blocks_0_linear1": (a, b)},
        "another base": {"lora_unet_double_blocks_0_img_attn_qkv": (a, b)},
        "all its weights are of the text encoder": {"lora_te1_text_model_x": (a, b)},
        "it twice, by two names": {
            "lora_unet_double_blocks_0_img_attn_proj": (a, b[:32]),
            "transformer.transformer_blocks.0.attn.to_out.0": (a, b[:32]),
        },
    }
    for message, layers in cases.items():
        state = {}
        for name, (down, up) in layers.items():
            state |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up.clone()}
        save_file({key: x.clone() for key, x in state.items()}, path)
        with pytest.raises(UserError, match=message):
            import_lora(path, flux, 0)
    save_file({"lora_unet_double_blocks_0_img_attn_proj.hada_w1_a": a}, path)
    with pytest.raises(UserError, match=r"this is a LoHa .*hada_w1_a.* and not a plain LoRA"):
        import_lora(path, flux, 0)


def test_mistakes(experts, tmp_path):
    _, folder = experts
    with pytest.raises(UserError, match=r'no expert for style "wacks" .known: ink, oil paint, wax'):
        read_blend(folder, {"wacks": 1.0})
    lora = read_blend(folder, {"ink": 1.0})
    with pytest.raises(UserError, match='no format "a1111", known: diffusers, peft, comfyui'):
        write_lora(lora, tmp_path, "x", "a1111")
    with pytest.raises(UserError, match=r'"nowhere\.linear" has no name in ComfyUI'):
        to_original(Lora({"nowhere.linear": (torch.ones(1, 2), torch.ones(2, 1))}, 1, 1.0))


A, B = (f"transformer.transformer_blocks.0.attn.to_q.lora_{side}.weight" for side in "AB")
BROKEN = {
    "no A": ({A: None}, rf'"{A}" is missing'),
    "no B": ({B: None}, rf'"{B}" is missing'),
    "no LoRA": ({"x": torch.ones(1)}, '"x" is no weight of an expert'),
    "1-D": ({A: torch.ones(6)}, rf'"{A}" is \[6\], expected \[6, in\]'),
    "another rank of A": ({A: torch.ones(5, 32)}, rf'"{A}" is \[5, 32\], expected \[6, in\]'),
    "another rank of B": ({B: torch.ones(32, 5)}, rf'"{B}" is \[32, 5\], expected \[out, 6\]'),
}


@pytest.fixture
def damage(make_flux, tmp_path):
    """Gives ``damage(changes)``: a folder of experts where a file has them; None: a key is gone."""
    folder = tmp_path / "experts"
    save_experts(folder, adapted(make_flux()), STYLES, base_name="tiny", base_fingerprint="abc")

    def damage(changes):
        path = folder / "wax" / "pytorch_lora_weights.safetensors"
        with safe_open(path, "pt") as file:
            header = file.metadata()
        state = load_file(path) | changes
        save_file({key: x for key, x in state.items() if x is not None}, path, header)
        return folder

    return damage


@pytest.mark.parametrize("broken", BROKEN)
def test_damaged_experts_are_neither_exported_nor_compressed(damage, tmp_path, broken):
    changes, message = BROKEN[broken]
    folder = damage(changes)
    for weights in ({"wax": 1.0}, BLEND):
        with pytest.raises(UserError, match=rf"wax.*safetensors: .*{message}"):
            read_blend(folder, weights)
    with pytest.raises(UserError, match=rf"wax.*safetensors: .*{message}"):
        compress(folder, tmp_path / "small", torch.float16, 2)


@pytest.mark.parametrize(
    "changes", [{A: None, B: None}, {A: torch.ones(6, 31)}], ids=["missing", "narrow"]
)
def test_a_blend_of_other_layers_is_refused(damage, changes):
    folder = damage(changes)
    with pytest.raises(
        UserError, match=r"wax.*other layers .* first \"transformer_blocks\.0.*to_q"
    ):
        read_blend(folder, BLEND)
    read_blend(folder, {"wax": 1.0})


def test_a_file_without_weights_is_refused(damage):
    folder = damage({})
    path = folder / "wax" / "pytorch_lora_weights.safetensors"
    damage(dict.fromkeys(load_file(path)))
    with pytest.raises(UserError, match="no weights in this file"):
        read_blend(folder, {"wax": 1.0})


def test_parts_of_one_layer_take_equal_inputs():
    sizes = {"transformer_blocks.0.attn.to_q": 32, "transformer_blocks.0.attn.to_k": 31}
    pairs = {name: (torch.ones(2, n), torch.ones(32, 2)) for name, n in sizes.items()}
    with pytest.raises(UserError, match='to_k" takes 31 inputs'):
        to_original(Lora(pairs, 2, 2.0))
