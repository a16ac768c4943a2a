"""A stub encoder of known geometry and a small set of edits next to the tiny manifest."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from regionroute.data.images import read_image, write_image
from regionroute.data.manifest import load_manifest


class StubEncoder:
    """Mean colour of an image, and for each text a given vector."""

    def __init__(self, texts):
        self.texts = texts
        self.crops = []

    def encode_image(self, images):
        self.crops = list(images)
        return torch.stack([image.mean((1, 2)) for image in images])

    def encode_text(self, texts):
        return torch.stack([torch.tensor(self.texts[text]) for text in texts])

    def identity(self):
        return {"encoder": "stub", "weights": "none"}


@pytest.fixture
def stub_encoder():
    return StubEncoder


@pytest.fixture
def edits(tiny_manifest):
    """Two methods' edits of the tiny manifest's four pairs: {name: folder}.

    "good" is the exact target with a map on the mask; "half" goes half way everywhere, without map.
    """
    manifest = load_manifest(tiny_manifest)
    folders = {name: Path(tiny_manifest.parent / name) for name in ("good", "half")}
    for sample in manifest.samples:
        target, context = manifest.target(sample), manifest.context(sample)
        mask = manifest.masks(sample).amax(0)
        write_image(folders["good"] / f"{sample.id}.png", target)
        grid = torch.nn.functional.adaptive_avg_pool2d(mask, (8, 8))
        # As the editor writes it: nearest upsampled, 8 bit, 128 on the boundary.
        levels = (20 + 200 * (grid >= 0.5)).repeat_interleave(8, 1).repeat_interleave(8, 2)
        Image.fromarray(levels[0].numpy().astype(np.uint8)).save(
            folders["good"] / f"{sample.id}.map.png"
        )
        sidecar = {"map": {"file": f"{sample.id}.map.png", "grid": [8, 8]}}
        (folders["good"] / f"{sample.id}.json").write_text(json.dumps(sidecar))
        grey = context.mean(0, keepdim=True).expand(3, -1, -1)
        halfway = context + 0.5 * torch.where(mask > 0, target - context, grey - context)
        write_image(folders["half"] / f"{sample.id}.png", halfway)
        assert read_image(folders["half"] / f"{sample.id}.png").shape == context.shape
    return folders
