"""Learned routers and shared experts on disk, and the model card."""

import json
from types import SimpleNamespace

import pytest
import torch
import yaml
from diffusers import FluxKontextPipeline
from safetensors.torch import load_file, save_file

from regionroute.adapters import (
    FixedRouter,
    RouteContext,
    SimilarityRouter,
    adapter_layers,
    expert_state_dict,
    inject,
    load_expert_state_dict,
    load_experts,
    read_registry,
    routed,
    save_experts,
)
from regionroute.adapters.files.card import card
from regionroute.adapters.files.export import expert_names
from regionroute.data.manifest import StyleSpec
from regionroute.errors import UserError

FILE = "pytorch_lora_weights.safetensors"
OPTIONS = {"base_name": "tiny", "base_fingerprint": "abc"}


def adapted(flux, learned, shared_rank=2):
    generator = torch.Generator().manual_seed(3)
    router = (lambda: SimilarityRouter(6, 3, 2, generator=generator)) if learned else None
    inject(
        flux, "styleexpert", 3, 4, 6.0, shared_rank=shared_rank, router=router, generator=generator
    )
    for layer in adapter_layers(flux).values():
        for name, parameter in layer.named_parameters():
            if name in ("lora_B", "shared_B"):
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return flux


def save(flux, folder, learned, **extra):
    styles = expert_names(3) if learned else [StyleSpec("ink"), StyleSpec("oil"), StyleSpec("wax")]
    return save_experts(folder, flux, styles, **OPTIONS, extra=extra)


def base(flux):
    return SimpleNamespace(name="other", fingerprint="abc", transformer=flux)


def run(flux, inputs, context):
    with torch.no_grad(), routed(flux, context):
        return flux(**inputs)[0]


@pytest.mark.parametrize("shared_rank", [0, 2])
def test_learned_routing_round_trip(make_flux, inputs, tmp_path, shared_rank):
    ours = adapted(make_flux(), learned=True, shared_rank=shared_rank)
    written = save(ours, tmp_path, learned=True)
    loaded = make_flux()
    registry = load_experts(tmp_path, base(loaded))
    assert registry == written
    assert registry.learned
    assert registry.router.model_dump() == {
        "kind": "similarity", "file": "router.safetensors", "shared_rank": shared_rank,
        "style_dim": 6, "top_k": 2, "normalize": True, "compat": "fixed",
    }  # fmt: skip
    context = RouteContext(style_emb=torch.randn(3, 6))
    assert torch.equal(run(loaded, inputs, context), run(ours, inputs, context))


def test_an_expert_with_the_shared_one_is_one_ordinary_lora(make_flux, inputs, tmp_path):
    ours = adapted(make_flux(), learned=False)
    assert save(ours, tmp_path, learned=False).shared_rank == 2
    parts = ["scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"]
    pipeline = FluxKontextPipeline(transformer=make_flux(), **dict.fromkeys(parts))
    pipeline.load_lora_weights(tmp_path / "oil")
    with torch.no_grad():
        stock = pipeline.transformer(**inputs)[0]
    route = RouteContext(torch.full((3,), 1))
    torch.testing.assert_close(stock, run(ours, inputs, route), rtol=0, atol=1e-5)
    config = pipeline.transformer.peft_config["default_0"]
    assert (config.r, config.lora_alpha) == (6, 9.0)
    loaded = make_flux()
    registry = load_experts(tmp_path, base(loaded))
    assert registry.index("oil") == 1
    assert torch.equal(run(loaded, inputs, route), run(ours, inputs, route))


def test_an_expert_cannot_bring_another_shared_expert(make_flux):
    ours = adapted(make_flux(), learned=False)
    state = expert_state_dict(ours, 0)
    load_expert_state_dict(ours, 1, state)
    key = "transformer.transformer_blocks.0.attn.to_q.lora_B.weight"
    state[key] = state[key] + torch.nn.functional.pad(torch.ones(32, 1), (5, 0))
    with pytest.raises(UserError, match=r'shared expert in "transformer.*to_q" is not that'):
        load_expert_state_dict(ours, 1, state)


def test_fixed_routers_are_not_for_files(flux, tmp_path):
    inject(flux, ["to_q"], 2, 4, 4, router=lambda: FixedRouter(torch.ones(2)))
    with pytest.raises(ValueError, match="FixedRouter cannot be saved"):
        save_experts(tmp_path, flux, [StyleSpec("a"), StyleSpec("b")], **OPTIONS)


def edit_json(change):
    def apply(folder):
        values = json.loads((folder / "experts.json").read_text())
        change(values)
        (folder / "experts.json").write_text(json.dumps(values))

    return apply


def edit_file(name, change):
    def apply(folder):
        state = load_file(folder / name)
        change(state)
        settings = {"transformer.r": 6, "transformer.lora_alpha": 9.0}
        save_file(state, folder / name, {"lora_adapter_metadata": json.dumps(settings)})

    return apply


ROUTER = "router.safetensors"
GATE = "transformer.transformer_blocks.0.attn.to_q.router.gate.weight"
SHARED = "transformer.transformer_blocks.0.attn.to_q.shared_A"
DAMAGES = {
    "no file": (lambda f: (f / ROUTER).unlink(), f"{ROUTER}: no such"),
    "no gate": (edit_file(ROUTER, lambda s: s.pop(GATE)), f'1 weights are missing, first "{GATE}"'),
    "extra": (edit_file(ROUTER, lambda s: s.update(x=torch.ones(1))), "1 weights have no place"),
    "shape": (edit_file(ROUTER, lambda s: s.update({GATE: torch.ones(2, 6)})), r"\[2, 6\], exp"),
    "shared": (edit_file(ROUTER, lambda s: s[SHARED].add_(1)), "not that of the other experts"),
    "escape": (edit_json(lambda v: v["router"].update(file="../x")), "must lie inside"),
    "no width": (edit_json(lambda v: v["router"].update(style_dim=None)), "router: .*style_dim"),
    "too many": (edit_json(lambda v: v["router"].update(top_k=4)), "top_k is 4, there are 3"),
    "unknown": (edit_json(lambda v: v["router"].update(kind="dice")), "router.kind"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_the_model_stays_as_it_was(make_flux, tmp_path, damage):
    save(adapted(make_flux(), learned=True), tmp_path, learned=True)
    apply, message = DAMAGES[damage]
    apply(tmp_path)
    flux = make_flux()
    with pytest.raises(UserError, match=message) as caught:
        load_experts(tmp_path, base(flux))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no adapted layers"):
        adapter_layers(flux)


def test_registries_without_routing_still_load(make_flux, make_adapted, tmp_path):
    styles = [StyleSpec("ink"), StyleSpec("oil"), StyleSpec("wax")]
    save_experts(tmp_path, make_adapted(), styles, **OPTIONS)
    edit_json(lambda v: (v.pop("router"), v.update(schema=1)))(tmp_path)
    assert load_experts(tmp_path, base(make_flux())).router is None
    assert not (tmp_path / ROUTER).exists()


def test_card(make_flux, tmp_path):
    extra = {
        "license": "apache-2.0",
        "data": {"manifest": "scenes", "samples": 64},
        "steps": 400,
        "losses": {"flow": 0.12345},
        "routing": {"branch": "base"},
        "metrics": {"Success": {"mean": 0.5, "low": 0.4, "high": 0.6}, "Object error": 0.01},
        "config": {"optim": {"lr": 0.001}},
    }
    flux = adapted(make_flux(), learned=False)
    options = OPTIONS | {"base_name": "some/base"}
    styles = [StyleSpec("ink", "black ink"), StyleSpec("oil | wax"), StyleSpec("wax")]
    save_experts(tmp_path, flux, styles, **options, extra=extra)
    text = (tmp_path / "README.md").read_text()
    header = yaml.safe_load(text.split("---")[1])
    assert (header["base_model"], header["license"]) == ("some/base", "apache-2.0")
    for told in (
        "| ink | black ink | `ink/pytorch_lora_weights.safetensors` |",
        "| oil \\| wax |",
        "shared expert of rank 2",
        "the base paints inside the gates",
        "| steps | 400 |",
        "| data: samples | 64 |",
        "| flow | 0.1235 |",
        "| Success | 0.5 (0.4 to 0.6) |",
        "| Object error | 0.01 |",
        "lr: 0.001",
        "make the dog in black ink style",
    ):
        assert told in text, told


def test_a_card_says_what_is_not_known_and_names_no_folder_of_this_machine(make_flux, tmp_path):
    registry = save(adapted(make_flux(), learned=True), tmp_path, learned=True)
    text = (tmp_path / "README.md").read_text()
    assert "3 LoRA experts of rank 4; in each layer" in text
    assert "selects 2 of them" in text
    assert "have not been scored" in text
    assert "Not stated" in text
    assert yaml.safe_load(text.split("---")[1])["license_name"] == "not-stated"
    alone = registry.model_copy(update={"experts": registry.experts[:1]})
    assert "\n1 LoRA expert of rank 4; in each layer" in card(alone)
    assert read_registry(tmp_path) == registry
    folder = tmp_path / "some" / "base"
    save_experts(
        tmp_path, adapted(make_flux(), learned=True), expert_names(3),
        base_name=str(folder), base_fingerprint="abc",
    )  # fmt: skip
    text = (tmp_path / "README.md").read_text()
    assert "# Style experts for base\n" in text
    assert str(tmp_path) not in text
