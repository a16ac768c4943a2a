"""ComfyUI's own Flux with an expert; needs COMFYUI_PATH and the requirements of ComfyUI."""

import os

import pytest
import torch

from regionroute.adapters import parse_blend, read_registry
from regionroute.adapters.files.formats import read_blend, to_original
from regionroute.errors import UserError
from regionroute.models.bundled import bundled_experts

pytestmark = pytest.mark.skipif(
    "COMFYUI_PATH" not in os.environ, reason="COMFYUI_PATH names no checkout of ComfyUI"
)


def flux(transformer, **other):
    """ComfyUI's MODEL of the sizes of one of diffusers, with random weights."""
    from comfy import model_base, model_patcher, supported_models

    width = transformer.num_attention_heads * transformer.attention_head_dim
    channels = transformer.in_channels // 4
    sizes = {
        "image_model": "flux", "in_channels": channels, "out_channels": channels,
        "vec_in_dim": transformer.pooled_projection_dim, "mlp_ratio": 4.0, "hidden_size": width,
        "context_in_dim": transformer.joint_attention_dim, "depth": transformer.num_layers,
        "num_heads": transformer.num_attention_heads, "theta": 10000, "patch_size": 2,
        "depth_single_blocks": transformer.num_single_layers, "qkv_bias": True,
        "axes_dim": [*transformer.axes_dims_rope], "guidance_embed": False, "txt_ids_dims": [],
    }  # fmt: skip
    settings = supported_models.Flux(sizes | other)
    settings.unet_config["dtype"] = torch.float32
    settings.manual_cast_dtype = None
    cpu = torch.device("cpu")
    model = model_base.Flux(settings, device=cpu)
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) * 0.02
    return model_patcher.ModelPatcher(model, cpu, cpu)


@pytest.fixture(scope="module")
def lora():
    folder = bundled_experts("nano")
    return to_original(read_blend(folder, parse_blend("line-art", read_registry(folder).name)))


def test_every_layer_of_an_expert_is_added_at_its_strength(pack, pipe, lora):
    from comfy import utils

    model = flux(pipe.backbone.transformer.config)
    patched = pack("api").add_lora(model, lora, 0.5, "nano: line-art")
    assert len(patched.patches) == sum(name.endswith(".lora_up.weight") for name in lora)
    assert not model.patches
    for key in patched.patches:
        layer = key.removeprefix("diffusion_model.").removesuffix(".weight").replace(".", "_")
        parts = ("lora_up.weight", "lora_down.weight", "alpha")
        up, down, alpha = (lora[f"lora_unet_{layer}.{part}"].float() for part in parts)
        change = 0.5 * alpha / len(down) * (up @ down)
        before = utils.get_attr(model.model, key)
        after = patched.patch_weight_to_device(key, torch.device("cpu"), return_weight=True)
        assert change.abs().max() > 1e-4
        torch.testing.assert_close(after, before + change, rtol=0, atol=1e-6)


def test_experts_of_other_sizes_are_refused(pack, pipe, lora):
    config = pipe.backbone.transformer.config
    with pytest.raises(UserError, match="choose experts that were trained on this MODEL's base"):
        pack("api").add_lora(flux(config, hidden_size=384, num_heads=12), lora, 1.0, "x")
    with pytest.raises(UserError, match="this MODEL has no layer"):
        pack("api").add_lora(flux(config, depth=0), lora, 1.0, "x")
