"""Does an edit stay where it was? Drift of the output against the input, in pixels.

FLUX.2-klein's own edits shift the image (InvokeAI #9507). What the pipeline adds to that is
measured here at full size, 1024x1024 and that area: a transformer that predicts the exact way back
to the context must give the input, at the same place.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from regionroute.editing.editor import Editor
from regionroute.editing.request import EditOptions, EditRequest
from regionroute.models.loading import load_base

PATCH = 8  # as of FLUX's autoencoders


class ExactAutoencoder(nn.Module):
    """Cells of 8x8 pixels as latent channels: no loss, and the grid of the real ones."""

    dtype = torch.float32

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(
            block_out_channels=[1] * 4, batch_norm_eps=0.0, scaling_factor=1.0, shift_factor=0.0
        )
        self.bn = nn.BatchNorm1d(4 * 3 * PATCH**2)

    def encode(self, x):
        latents = F.pixel_unshuffle(x, PATCH)
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latents))

    def decode(self, z, return_dict=True):
        return (F.pixel_shuffle(z, PATCH),)


def base_that_returns_its_input(folder, moved=0):
    """A base whose velocity leads to the context, `moved` rows of tokens further down."""
    base = load_base(str(folder))
    base.vae = ExactAutoencoder().eval()
    base.settings = replace(base.settings, resolution=1024)

    def forward(hidden_states, timestep, img_ids, **_):
        noisy, context = hidden_states.chunk(2, dim=1)
        ids = img_ids if img_ids.ndim == 2 else img_ids[0]
        rows = ids[: noisy.shape[1], 1]
        per_row = int((rows == rows[0]).sum())
        context = context.roll(moved * per_row, dims=1)
        return ((noisy - context) / timestep[:, None, None],)

    base.transformer.forward = forward
    return base


def shift(one, other):
    """Pixels (down, right) by which `other` is `one` displaced: the peak of their correlation."""
    spectra = [np.fft.fft2(image.mean(0).numpy() - float(image.mean())) for image in (one, other)]
    cross = spectra[1] * spectra[0].conj()
    peak = np.fft.ifft2(cross / (abs(cross) + 1e-9)).real
    found = np.unravel_index(peak.argmax(), peak.shape)
    return tuple(int((p + n // 2) % n - n // 2) for p, n in zip(found, peak.shape, strict=True))


@pytest.fixture(params=["tiny_klein", "tiny_base"])
def folder(request):
    return request.getfixturevalue(request.param)


def photo(height, width):
    generator = torch.Generator().manual_seed(0)
    return F.interpolate(
        torch.rand(1, 3, height // 4, width // 4, generator=generator), (height, width),
        mode="bilinear",
    )[0]  # fmt: skip


@pytest.mark.parametrize("size", [(1024, 1024), (1184, 896)])
def test_an_edit_is_registered_with_its_input(folder, size):
    image = photo(*size)
    base = base_that_returns_its_input(folder)
    assert base.fit_size(*size) == size
    options = EditOptions(steps=2, mode="plain", guidance=1.0)
    edited = Editor(base).edit(image, EditRequest("dog", "pixel-art"), options).image
    assert shift(image, edited) == (0, 0)
    torch.testing.assert_close(edited, image, atol=1e-4, rtol=0)


def test_a_drift_of_one_token_is_found(folder):
    image = photo(1024, 1024)
    base = base_that_returns_its_input(folder, moved=1)
    options = EditOptions(steps=2, mode="plain", guidance=1.0)
    edited = Editor(base).edit(image, EditRequest("dog", "pixel-art"), options).image
    assert shift(image, edited) == (2 * PATCH, 0)
