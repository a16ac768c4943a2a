"""A small Stable Diffusion of the real classes with random weights: plumbing, no skill."""

from pathlib import Path
from typing import Any

import torch

from pseudo_labels.stylegallery.model import DiffusionModel
from regionroute.files import settings_hash

TEXT_WIDTH = 32
_WIDTHS = (32, 64, 64, 64)


def random_model(
    seed: int = 0, device: torch.device | None = None, widths: tuple[int, ...] = _WIDTHS
) -> DiffusionModel:
    """A model with as many layers as Stable Diffusion 1.5, but narrow ones.

    Args:
        seed: of the weights.
        device: where it works, None: the processor.
        widths: channels of the UNet's four stages.
    """
    from diffusers import DDIMScheduler

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet, vae = random_unet(widths), _vae()
        text = torch.randn(1, 8, TEXT_WIDTH)
    scheduler = DDIMScheduler(**scheduler_settings())
    return DiffusionModel(
        unet,
        vae,
        text,
        scheduler.alphas_cumprod.double(),
        scheduler.config.steps_offset,
        settings_hash(["random", seed, widths]),
        device or torch.device("cpu"),
        random=True,
    )


def scheduler_settings() -> dict[str, Any]:
    """The noise schedule of Stable Diffusion 1.5."""
    return {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }


def random_unet(
    widths: tuple[int, ...] = _WIDTHS, heads: int = 4, text_width: int = TEXT_WIDTH
) -> Any:
    """A random UNet with the layers of Stable Diffusion 1.5."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        block_out_channels=widths,
        layers_per_block=2,
        in_channels=4,
        out_channels=4,
        cross_attention_dim=text_width,
        attention_head_dim=heads,
        norm_num_groups=8,
        sample_size=64,
    )
    # Random query and key weights attend almost evenly; sharper ones give attention worth having.
    for name, weight in unet.named_parameters():
        if name.endswith(("attn1.to_q.weight", "attn1.to_k.weight")):
            weight.data.mul_(3)
    return unet


def _vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    )


def save_random_pipeline(folder: Path, seed: int = 0) -> Path:
    """Writes a random model in the layout of a Stable Diffusion 1.5 folder.

    Args:
        folder: where; made if absent.
        seed: of the weights.
    """
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel

    from regionroute.models.loading import quiet
    from regionroute.models.tokenizers import build_clip_tokenizer

    model = random_model(seed)
    tokenizer = build_clip_tokenizer(("a", "picture"), 16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=TEXT_WIDTH,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=16,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    pipeline = StableDiffusionPipeline(
        vae=model.vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=model.unet,
        scheduler=DDIMScheduler(**scheduler_settings()),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with quiet():
        pipeline.save_pretrained(folder)
    return folder
