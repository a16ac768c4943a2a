"""A small random diffusion model and pictures with visible parts."""

import pytest
import torch

from pseudo_labels.stylegallery.models.random_sd import save_random_pipeline
from pseudo_labels.stylegallery.models.stable_diffusion import random_model


@pytest.fixture(scope="session")
def model():
    """A random model with the layers of Stable Diffusion 1.5; do not change it."""
    return random_model()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A random model in a folder's layout; do not write into it."""
    return save_random_pipeline(tmp_path_factory.mktemp("sd") / "tiny")


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
