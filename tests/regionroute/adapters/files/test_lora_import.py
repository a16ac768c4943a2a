import pytest
import torch
from diffusers import FluxKontextPipeline
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from regionroute.adapters import RouteContext, adapter_layers, import_lora, routed
from regionroute.errors import UserError


def stock_lora(flux, **options):
    """A PEFT LoRA on some attention projections, with B drawn at random."""
    settings = {"r": 2, "lora_alpha": 5, "target_modules": ["to_q", "to_v", "to_out.0"]} | options
    config = LoraConfig(init_lora_weights=False, **settings)
    torch.manual_seed(5)
    flux.add_adapter(config)
    return flux


def run(flux, inputs, expert):
    with torch.no_grad(), routed(flux, RouteContext(torch.full((3,), expert))):
        return flux(**inputs)[0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"r": 4, "lora_alpha": 4},
        {"use_rslora": True},
        {"rank_pattern": {"to_v": 3}, "alpha_pattern": {"to_out.0": 1}},
    ],
)
def test_a_stock_lora_computes_the_same_as_an_expert(make_flux, adapted, inputs, tmp_path, options):
    stock = stock_lora(make_flux(), **options)
    stock.save_lora_adapter(tmp_path)
    with torch.no_grad():
        expected = stock(**inputs)[0]
    bystander = run(adapted, inputs, 0)
    names = import_lora(tmp_path, adapted, 1)
    assert len(names) == 2 * 3 + 2 * 2
    torch.testing.assert_close(run(adapted, inputs, 1), expected, rtol=0, atol=1e-5)
    assert (expected - make_flux()(**inputs)[0]).abs().max() > 1e-2
    assert torch.equal(run(adapted, inputs, 0), bystander)


def test_a_peft_folder_with_its_config(make_flux, adapted, inputs, tmp_path):
    torch.manual_seed(5)
    config = LoraConfig(r=2, lora_alpha=5, target_modules=["to_q"], init_lora_weights=False)
    model = get_peft_model(make_flux(), config)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(**inputs)[0]
    import_lora(tmp_path, adapted, 2)
    torch.testing.assert_close(run(adapted, inputs, 2), expected, rtol=0, atol=1e-5)


def test_the_published_releases_files(make_flux, adapted, inputs, tmp_path):
    """As its training writes them: rank = alpha, by the pipeline's save, without a header."""
    options = {"r": 4, "lora_alpha": 4, "target_modules": ["to_k", "to_q", "to_v", "to_out.0"]}
    stock = stock_lora(make_flux(), **options)
    layers = get_peft_model_state_dict(stock)
    FluxKontextPipeline.save_lora_weights(tmp_path, layers, weight_name="pixel-art.safetensors")
    with torch.no_grad():
        expected = stock(**inputs)[0]
    names = import_lora(tmp_path / "pixel-art.safetensors", adapted, 2)
    assert set(names) == set(adapter_layers(adapted))
    torch.testing.assert_close(run(adapted, inputs, 2), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (3.0, 1.5)])
def test_pipeline_names_with_and_without_alpha_tensors(adapted, tmp_path, alpha, scale):
    module = "transformer_blocks.0.attn.to_q"
    a, b = torch.randn(2, 32), torch.randn(32, 2)
    state = {
        f"transformer.{module}.lora_A.weight": a,
        f"transformer.{module}.lora_B.weight": b,
    }
    if alpha is not None:
        state[f"transformer.{module}.alpha"] = torch.tensor(alpha)
    save_file(state, tmp_path / "style.safetensors")
    assert import_lora(tmp_path / "style.safetensors", adapted, 0) == [module]
    layers = adapter_layers(adapted)
    layer = layers[module]
    delta = layer.alpha / layer.rank * layer.lora_B[0] @ layer.lora_A[0]
    torch.testing.assert_close(delta.detach(), scale * b @ a)
    assert all(bool((x.lora_B[0] == 0).all()) == (name != module) for name, x in layers.items())
    assert (layer.lora_A[0] != 0).any(-1).all()  # the unused ranks can still be trained


def change(path, edit):
    state = load_file(path)
    edit(state)
    save_file(state, path)


Q = "transformer_blocks.0.attn.to_q.lora_A.weight"
DAMAGES = {
    "one side": (lambda s: s.pop(Q), 'to_q" lacks its lora_A or lora_B'),
    "other format": (
        lambda s: s.update({"lora_unet_x.hada_w1_a": torch.ones(1)}),
        "this is a LoHa",
    ),
    "bias": (lambda s: s.update({Q.replace("A.weight", "B.bias"): torch.ones(32)}), "is not a"),
    "stray alpha": (lambda s: s.update({"x.alpha": torch.ones(())}), '"x" lacks'),
    "empty": (lambda s: s.clear(), "no LoRA weights"),
    "other base": (lambda s: s.update({Q: torch.ones(2, 31)}), "belongs to another base"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_nothing_is_ignored_silently(make_flux, adapted, inputs, tmp_path, damage):
    stock_lora(make_flux()).save_lora_adapter(tmp_path, weight_name="style.safetensors")
    edit, message = DAMAGES[damage]
    change(tmp_path / "style.safetensors", edit)
    before = run(adapted, inputs, 0)
    with pytest.raises(UserError, match=message):
        import_lora(tmp_path / "style.safetensors", adapted, 0)
    assert torch.equal(run(adapted, inputs, 0), before)


def test_what_does_not_fit_is_refused(make_flux, adapted, tmp_path):
    stock_lora(make_flux(), target_modules=["proj_mlp"]).save_lora_adapter(tmp_path / "mlp")
    with pytest.raises(UserError, match=r"proj_mlp.*no experts here"):
        import_lora(tmp_path / "mlp", adapted, 0)
    stock_lora(make_flux(), r=5).save_lora_adapter(tmp_path / "big")
    with pytest.raises(UserError, match="rank is 5, the experts' only 4"):
        import_lora(tmp_path / "big", adapted, 0)
    with pytest.raises(UserError, match="neither"):
        import_lora(tmp_path, adapted, 0)
    with pytest.raises(UserError, match="no such LoRA file"):
        import_lora(tmp_path / "none.safetensors", adapted, 0)
    stock_lora(make_flux()).save_lora_adapter(tmp_path / "good")
    with pytest.raises(ValueError, match="no expert 3"):
        import_lora(tmp_path / "good", adapted, 3)
