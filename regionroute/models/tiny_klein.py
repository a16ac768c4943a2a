"""A random FLUX.2-klein pipeline of the real classes, small enough for tests; it has no skill."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from transformers import Qwen3Config, Qwen3ForCausalLM

from regionroute.diffusion.flux2_klein import STATES
from regionroute.files import write_json
from regionroute.models.source import SETTINGS_FILE
from regionroute.models.tiny import WORDS
from regionroute.models.tokenizers import build_qwen_tokenizer
from regionroute.pretrained import quiet

TEXT_LENGTH = 64  # the chat's own tokens and the template with a few letters-only words
TEXT_WIDTH = 16
SETTINGS = {"steps": 2, "guidance": 4.0, "max_text_length": TEXT_LENGTH, "resolution": 32}
LATENT_CHANNELS = 4


def build_tiny_klein(folder: str | Path, seed: int = 0, distilled: bool = False) -> Path:
    """Writes a random base in diffusers' layout; about 0.7 MB, a second to make.

    Args:
        folder: where; created if absent.
        seed: of the weights.
        distilled: marks it as needing no guidance, like FLUX.2-klein-4B.

    Returns:
        The folder: what ``load_base`` and the stock ``Flux2KleinPipeline`` both load.
    """
    folder = Path(folder)
    tokenizer = build_qwen_tokenizer(WORDS, TEXT_LENGTH)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = Flux2KleinPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
            vae=_vae(),
            text_encoder=_text_encoder(len(tokenizer)),
            tokenizer=tokenizer,
            transformer=_transformer(),
            is_distilled=distilled,
        )
    with quiet():
        pipeline.save_pretrained(folder)
    write_json(folder / SETTINGS_FILE, SETTINGS)
    return folder


def _transformer() -> Flux2Transformer2DModel:
    transformer = Flux2Transformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        num_layers=2,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=len(STATES) * TEXT_WIDTH,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    # Queries and keys are normalised, so that random ones attend almost evenly; sharper ones give
    # maps worth testing.
    for name, weight in transformer.named_parameters():
        if name.endswith(("norm_q.weight", "norm_k.weight", "norm_added_k.weight")):
            weight.data.mul_(2)
    return transformer


def _vae() -> AutoencoderKLFlux2:
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=32,
    )
    # Statistics that differ between the channels of a patch, as trained ones do.
    vae.bn.running_mean.copy_(torch.randn(4 * LATENT_CHANNELS) * 0.2)
    vae.bn.running_var.copy_(torch.rand(4 * LATENT_CHANNELS) + 0.5)
    return vae


def _text_encoder(words: int) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=words,
        hidden_size=TEXT_WIDTH,
        intermediate_size=16,
        num_hidden_layers=max(STATES) + 1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=2 * TEXT_LENGTH,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config)
