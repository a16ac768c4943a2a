"""A random Flux transformer and a batch for it: 2 double and 2 single blocks, 4x4 image tokens."""

import pytest
import torch
from diffusers import FluxTransformer2DModel

TEXT, SIDE, BATCH = 6, 4, 3


@pytest.fixture
def flux():
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    for module in model.modules():  # QK-norm weights are 1 at birth, which would hide mistakes
        if isinstance(module, torch.nn.RMSNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 2.0)
    return model.eval().requires_grad_(False)


@pytest.fixture
def inputs():
    """Noisy target tokens followed by as many context tokens (frame 1)."""
    generator = torch.Generator().manual_seed(1)

    def randn(*shape):
        return torch.randn(shape, generator=generator)

    ids = torch.zeros(2, SIDE, SIDE, 3)
    ids[1, ..., 0] = 1
    ids[..., 1] = torch.arange(SIDE)[:, None]
    ids[..., 2] = torch.arange(SIDE)
    return {
        "hidden_states": randn(BATCH, 2 * SIDE * SIDE, 16),
        "encoder_hidden_states": randn(BATCH, TEXT, 32),
        "pooled_projections": randn(BATCH, 32),
        "timestep": torch.tensor([0.9, 0.5, 0.1]),
        "img_ids": ids.reshape(-1, 3),
        "txt_ids": torch.zeros(TEXT, 3),
        "guidance": torch.ones(BATCH),
        "return_dict": False,
    }
