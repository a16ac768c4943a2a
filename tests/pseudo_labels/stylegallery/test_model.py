import json
import shutil

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from pseudo_labels.stylegallery.models.loading import load_model
from pseudo_labels.stylegallery.models.stable_diffusion import StableDiffusion
from pseudo_labels.stylegallery.networks import SemanticEncoder
from regionroute.errors import UserError

CPU = torch.device("cpu")


def test_a_folder_is_all_that_is_needed(model_folder, model, pictures):
    loaded = load_model(str(model_folder))
    assert torch.equal(loaded.encode(pictures[0]), model.encode(pictures[0]))
    assert torch.equal(loaded.alphas, model.alphas)
    assert loaded.offset == 1
    assert loaded.text.shape == (1, 16, 32)
    assert not any(p.requires_grad for p in (*loaded.unet.parameters(), *loaded.vae.parameters()))
    half = load_model(str(model_folder), dtype="bfloat16")
    assert half.unet.dtype == torch.bfloat16
    assert half.vae.dtype == torch.float32
    assert half.fingerprint != loaded.fingerprint
    assert load_model(str(model_folder)).fingerprint == loaded.fingerprint


def test_pictures_and_latents(model, pictures):
    latents = model.encode(pictures[0])
    assert latents.shape == (1, 4, 8, 8)
    assert torch.equal(latents, model.encode(pictures[0]))  # the mode, not a sample
    with torch.no_grad():
        mean = model.vae.encode(pictures[0][None] * 2 - 1).latent_dist.mean
    assert torch.allclose(latents, mean * model.vae.config.scaling_factor)
    image = model.decode(latents)
    assert image.shape == (3, 64, 64)
    assert 0 <= image.min() <= image.max() <= 1


def test_offloading_puts_parts_where_they_work(model):
    moved = []

    class Part(torch.nn.Module):
        def to(self, device):
            moved.append(str(device))
            return self

    part = Part()
    lazy = StableDiffusion(part, part, model.text, model.alphas, 1, "x", CPU, offload=True)
    assert moved == []
    with pytest.raises(RuntimeError), lazy.at_work(part):
        raise RuntimeError
    assert moved == ["cpu", "cpu"]  # to its device, and back after an error too


def test_a_fast_lora_is_merged(model_folder, model, tmp_path):
    from diffusers import StableDiffusionPipeline

    weight = model.unet.state_dict()[
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    ]
    down, up = torch.randn(2, weight.shape[1]), torch.randn(weight.shape[0], 2)
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora"
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers={f"{name}_A.weight": down, f"{name}_B.weight": up},
        weight_name="fast.safetensors",
    )
    merged = load_model(str(model_folder), lora=str(tmp_path / "fast.safetensors"))
    key = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    assert torch.allclose(merged.unet.state_dict()[key], weight + up @ down, atol=1e-5)
    assert merged.fingerprint != load_model(str(model_folder)).fingerprint
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="does not fit the model"):
        load_model(str(model_folder), lora=str(tmp_path / "broken.safetensors"))


def spoilt(folder, tmp_path, part, key=None, value=None):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    path = copy / part
    if key is None:
        path.unlink()
    else:
        settings = json.loads(path.read_text())
        path.write_text(json.dumps(settings | {key: value}))
    return str(copy)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("model_index.json",), "no model_index.json"),
        (("model_index.json", "_class_name", "FluxPipeline"), "this is a FluxPipeline"),
        (("scheduler/scheduler_config.json", "prediction_type", "v_prediction"), "v_prediction"),
        (("vae/config.json",), "missing or damaged"),
        (("unet/diffusion_pytorch_model.safetensors",), "missing or damaged"),
        (("tokenizer/tokenizer.json",), "its tokenizer is missing"),
    ],
)
def test_folders_that_will_not_do(model_folder, tmp_path, change, words):
    with pytest.raises(UserError, match=words) as error:
        load_model(spoilt(model_folder, tmp_path, *change))
    assert "\n" not in str(error.value)


def test_weights_that_lack_something(model_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    copy = tmp_path / "model"
    shutil.copytree(model_folder, copy)
    path = copy / "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    del weights["conv_in.bias"]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(UserError, match=r"lack conv_in.bias|missing or damaged"):
        load_model(str(copy))


def test_names_that_will_not_do(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load_model(str(tmp_path / "nowhere"))


def test_semantic_tokens_cover_the_whole_picture(tmp_path, pictures):
    encoder = SemanticEncoder("random", CPU)
    wide = torch.cat([pictures[0], pictures[1]], dim=2)
    tokens = encoder.tokens(wide)
    assert tokens.shape == (32, 16, 16)
    changed = wide.clone()
    changed[:, :, -4:] = 0  # a centre crop would not see the right edge
    difference = (encoder.tokens(changed) - tokens).abs().amax(0)
    assert difference[:, -1].min() > 0
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    Dinov2Model(config).save_pretrained(tmp_path / "dino")
    assert SemanticEncoder(str(tmp_path / "dino"), CPU).tokens(wide).shape == (16, 16, 16)
    with pytest.raises(UserError, match="--dino"):
        SemanticEncoder(str(tmp_path / "nowhere"), CPU)
