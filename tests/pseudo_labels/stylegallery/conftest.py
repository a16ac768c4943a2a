"""A small random diffusion model and pictures with visible parts."""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextConfig, CLIPTextModel

from pseudo_labels.stylegallery.models.random_sd import TEXT_WIDTH, random_parts
from pseudo_labels.stylegallery.models.stable_diffusion import random_model
from regionroute.models.tokenizers import build_clip_tokenizer
from regionroute.pretrained import quiet


@pytest.fixture(scope="session")
def model():
    """A random model with the layers of Stable Diffusion 1.5; do not change it."""
    return random_model()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A random model in the layout of a Stable Diffusion 1.5 folder; do not write into it."""
    model = random_parts()
    tokenizer = build_clip_tokenizer(("a", "picture"), 16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
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
        scheduler=model.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder = tmp_path_factory.mktemp("sd") / "tiny"
    with quiet():
        pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pictures():
    """Three pictures [3, 64, 64]: a disc, stripes, and blocks, each over a gradient."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 64), indexing="ij")
    ground = torch.stack([0.2 + 0.3 * y, 0.4 + 0.2 * x, 0.7 - 0.3 * y])
    disc = ((y - 0.5).square() + (x - 0.5).square() < 0.09).float()
    stripes = ((x * 8).floor() % 2) * (y > 0.5)
    blocks = (((x * 4).floor() + (y * 4).floor()) % 2) * (x < 0.5)
    colours = ((0.9, 0.2, 0.1), (0.1, 0.8, 0.3), (0.9, 0.9, 0.2))
    return [
        ground * (1 - part) + torch.tensor(colour)[:, None, None] * part
        for part, colour in zip((disc, stripes, blocks), colours, strict=True)
    ]
