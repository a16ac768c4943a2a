"""A random Kontext pipeline of the real classes, small enough for tests: plumbing, no skill."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxTransformer2DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from regionroute.files import write_json
from regionroute.models.source import SETTINGS_FILE
from regionroute.models.tokenizers import build_clip_tokenizer, build_t5_tokenizer
from regionroute.pretrained import quiet

WORDS = (
    *("make", "the", "in", "style", "keep", "other", "area", "unchanged", "image", "and"),
    *("a", "turn", "into", "picture", "of", "square", "circle", "dog", "cup"),
    *("pixel-art", "line-art", "cyberpunk", "expressionist"),
)
TEXT_LENGTH = 32  # enough for the template with a few letters-only words
SETTINGS = {"steps": 2, "guidance": 3.5, "max_text_length": TEXT_LENGTH, "resolution": 32}


def build_tiny(folder: str | Path, seed: int = 0, guidance_embeds: bool = True) -> Path:
    """Writes a random base in diffusers' layout; about 0.7 MB, a second to make.

    Args:
        folder: where; created if absent.
        seed: of the weights.
        guidance_embeds: whether the transformer is guidance-distilled, as FLUX.1-Kontext-dev is.

    Returns:
        The folder: what ``load_base`` and the stock ``FluxKontextPipeline`` both load.
    """
    folder = Path(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = FluxKontextPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
            vae=_vae(),
            transformer=_transformer(guidance_embeds),
            **_text_parts(),
        )
    with quiet():
        pipeline.save_pretrained(folder)
    write_json(folder / SETTINGS_FILE, SETTINGS)
    return folder


def _transformer(guidance_embeds: bool) -> FluxTransformer2DModel:
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=24,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance_embeds,
    )
    # Random query and key weights attend almost evenly; sharper ones give maps worth testing.
    for name, weight in transformer.named_parameters():
        if name.endswith(("to_q.weight", "to_k.weight")):
            weight.data.mul_(2)
    return transformer


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        shift_factor=0.0609,
        scaling_factor=1.5035,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _text_parts() -> dict[str, object]:
    clip_tokenizer = build_clip_tokenizer(WORDS, 77)
    t5_tokenizer = build_t5_tokenizer(WORDS, TEXT_LENGTH)
    clip = CLIPTextConfig(
        vocab_size=len(clip_tokenizer),
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=clip_tokenizer.bos_token_id,
        eos_token_id=clip_tokenizer.eos_token_id,
        pad_token_id=clip_tokenizer.pad_token_id,
    )
    t5 = T5Config(
        vocab_size=len(t5_tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    return {
        "tokenizer": clip_tokenizer,
        "text_encoder": CLIPTextModel(clip),
        "tokenizer_2": t5_tokenizer,
        "text_encoder_2": T5EncoderModel(t5),
    }
