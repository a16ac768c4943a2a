"""A random Flux transformer and a batch for it: 2 double and 2 single blocks."""

import pytest
import torch
from diffusers import FluxTransformer2DModel

from regionroute.adapters import adapter_layers, inject

TEXT, IMAGE, BATCH = 5, 9, 3


def build_flux(seed=0):
    torch.manual_seed(seed)
    return FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    ).eval()


@pytest.fixture
def make_flux():
    """Builds the same transformer each time."""
    return build_flux


@pytest.fixture
def flux():
    return build_flux()


@pytest.fixture
def adapted():
    """The transformer with three experts of rank 4 at alpha 6, B drawn at random."""
    return randomised(build_flux())


@pytest.fixture
def make_adapted():
    return lambda **options: randomised(build_flux(), **options)


def randomised(flux, num_experts=3, rank=4, alpha=6.0):
    generator = torch.Generator().manual_seed(3)
    inject(flux, "regionroute", num_experts, rank, alpha, generator=generator)
    for layer in adapter_layers(flux).values():
        with torch.no_grad():
            layer.lora_B.copy_(torch.randn(layer.lora_B.shape, generator=generator) * 0.1)
    return flux


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)

    def randn(*shape):
        return torch.randn(shape, generator=generator)

    return {
        "hidden_states": randn(BATCH, 2 * IMAGE, 16),
        "encoder_hidden_states": randn(BATCH, TEXT, 32),
        "pooled_projections": randn(BATCH, 32),
        "timestep": torch.tensor([0.9, 0.5, 0.1]),
        "img_ids": torch.randint(0, 4, (2 * IMAGE, 3), generator=generator).float(),
        "txt_ids": torch.zeros(TEXT, 3),
        "guidance": torch.ones(BATCH),
        "return_dict": False,
    }
