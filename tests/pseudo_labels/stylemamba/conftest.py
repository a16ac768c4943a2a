"""Random networks of the real classes, small settings, pictures with something in them."""

import pytest
import torch

from pseudo_labels.stylemamba.codecs import random_codec
from pseudo_labels.stylemamba.config import FusionConfig, LossConfig, MambaConfig
from pseudo_labels.stylemamba.encoders import random_encoder
from pseudo_labels.stylemamba.objective import Parts
from regionroute.models.vgg import VggFeatures

SIZE = 32


@pytest.fixture(scope="session")
def tiny():
    """D = 16, two blocks, few steps."""
    return MambaConfig(
        fusion=FusionConfig(width=16, blocks=2, states=4),
        loss=LossConfig(masks=2),
        fit={"steps": 3, "size": SIZE},
        train={"steps": 4, "size": SIZE, "batch": 4, "warmup": 1, "save_every": 2, "log_every": 1,
               "preview_every": 4, "judged": 2, "neutral": 0.4},
    )  # fmt: skip


@pytest.fixture(scope="session")
def parts(vgg_weights):
    """A random VAE, a random SigLIP, a random VGG."""
    return Parts(random_codec(), random_encoder(), VggFeatures(vgg_weights()))


@pytest.fixture
def pictures():
    """Two pictures of 32 px: ramps with discs."""
    y, x = torch.meshgrid(torch.linspace(0, 1, SIZE), torch.linspace(0, 1, SIZE), indexing="ij")
    disc = (((y - 0.5) ** 2 + (x - 0.4) ** 2) < 0.08).float()
    first = torch.stack([0.2 + 0.5 * y, 0.7 - 0.4 * x, 0.2 + 0.6 * disc])
    second = torch.stack([0.6 * disc + 0.2, 0.3 + 0.3 * (x * 12).sin(), 0.8 - 0.6 * y])
    return torch.stack([first, second.clamp(0, 1)])
