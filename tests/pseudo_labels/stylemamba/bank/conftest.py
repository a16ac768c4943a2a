"""A bank of two filters, small enough to be trained in a test."""

import pytest
import torch

from pseudo_labels.stylemamba.bank.config import BankConfig
from regionroute.data.images import write_image

BANK = """\
styles:
  line-art:
    words: [ink outlines, black and white drawing]
    stylizer: filter
    settings: {filter: line-art}
  neon:
    words: [glowing lights]
    image: style.png
    stylizer: filter
    settings: {filter: neon}
"""


@pytest.fixture
def bank_file(tmp_path):
    """A bank file with its style image."""
    write_image(tmp_path / "style.png", noise(1, 48, 48))
    (tmp_path / "bank.yaml").write_text(BANK)
    return tmp_path / "bank.yaml"


@pytest.fixture
def photos(tmp_path):
    """Files of three photos of different sizes."""
    files = [tmp_path / "photos" / f"{name}.png" for name in "abc"]
    for number, file in enumerate(files):
        write_image(file, noise(number, 40 + 8 * number, 48))
    return files


@pytest.fixture
def small():
    """A network of 8 channels, few steps."""
    return BankConfig.model_validate(
        {
            "painter": {
                "channels": [4, 8, 8],
                "residual": 1,
                "fusion": {"width": 8, "blocks": 1, "states": 2, "expand": 1},
            },
            "train": {"targets": 2, "side": 32, "crop": 16, "steps": 6, "warmup": 1,
                      "style_steps": 0, "style_batch": 1, "save_every": 2, "log_every": 1},
        }
    )  # fmt: skip


def noise(seed, *size):
    """A smooth random image [3, H, W] in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, size, mode="bilinear")[0]
