"""Latents: each fact equals what diffusers' Kontext pipeline does."""

from __future__ import annotations

import pytest
import torch
from diffusers import FluxKontextPipeline

from regionroute.diffusion.latents import (
    decode_latents,
    encode_images,
    image_ids,
    mask_to_grid,
    pack,
    text_ids,
    unpack,
)
from regionroute.models.backbone import Backbone


def test_pack_equals_the_pipelines_and_unpack_inverts_it() -> None:
    latents = torch.randn(2, 4, 6, 10)
    tokens = pack(latents)
    assert torch.equal(tokens, FluxKontextPipeline._pack_latents(latents, 2, 4, 6, 10))
    assert torch.equal(unpack(tokens, 6, 10), latents)
    # The pipeline counts in pixels, we count in latent cells.
    assert torch.equal(
        unpack(tokens, 6, 10), FluxKontextPipeline._unpack_latents(tokens, 12, 20, 2)
    )


def test_pack_follows_its_einops_form() -> None:
    latents = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert pack(latents)[0, 1].tolist() == [2, 3, 6, 7]  # first row, second column of patches


def test_odd_latents_are_refused() -> None:
    with pytest.raises(ValueError, match="even"):
        pack(torch.zeros(1, 4, 5, 6))


@pytest.mark.parametrize("frame", [0, 1])
def test_image_ids_equal_the_pipelines(frame: int) -> None:
    theirs = FluxKontextPipeline._prepare_latent_image_ids(1, 3, 5, "cpu", torch.float32)
    theirs[..., 0] = frame
    assert torch.equal(image_ids(3, 5, frame), theirs)


def test_text_ids_are_zero() -> None:
    assert torch.equal(text_ids(7), torch.zeros(7, 3))


def test_encoding_is_the_scaled_mode(tiny_backbone: Backbone) -> None:
    vae = tiny_backbone.vae
    images = torch.rand(2, 3, 8, 12)
    with torch.no_grad():
        mode = vae.encode(images * 2 - 1).latent_dist.mode()
        ours = encode_images(vae, images)
    assert torch.equal(ours, (mode - vae.config.shift_factor) * vae.config.scaling_factor)
    assert ours.shape == (2, 4, 4, 6)


def test_decoding_undoes_scale_and_range(tiny_backbone: Backbone) -> None:
    vae = tiny_backbone.vae
    raw = torch.randn(1, 4, 4, 6)
    with torch.no_grad():
        expected = (vae.decode(raw).sample * 0.5 + 0.5).clamp(0, 1)
        ours = decode_latents(vae, (raw - vae.config.shift_factor) * vae.config.scaling_factor)
    torch.testing.assert_close(ours, expected)


def test_grid_mask_is_the_covered_share() -> None:
    mask = torch.zeros(1, 2, 1, 8, 8)
    mask[0, 0, :, :4, :2] = 1
    mask[0, 1] = 1
    grid = mask_to_grid(mask, 2, 2)
    assert grid.tolist() == [[[[0.5, 0], [0, 0]], [[1, 1], [1, 1]]]]


@pytest.mark.parametrize("size", [(7, 13), (64, 64), (3, 2)])
def test_a_single_pixel_never_vanishes(size: tuple[int, int]) -> None:
    for row in range(size[0]):
        mask = torch.zeros(1, 1, *size)
        mask[0, 0, row, size[1] // 2] = 1
        assert mask_to_grid(mask, 4, 5).sum() > 0


def test_no_masks_give_an_empty_grid() -> None:
    assert mask_to_grid(torch.zeros(0, 1, 8, 8), 2, 4).shape == (0, 2, 4)
