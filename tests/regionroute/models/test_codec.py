import pytest
import torch

from regionroute.diffusion.latents import decode_latents, encode_images, pack
from regionroute.models.codec import PatchCodec
from regionroute.models.image_encoder import ImageEncoder


@pytest.fixture(scope="module")
def pictures():
    """Smooth random pictures [64,3,32,32] in [0,1]: neighbouring pixels agree, as in photos."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(64, 3, 6, 6, generator=generator)
    return torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic").clamp(0, 1)


def fitted(pictures, channels):
    codec = PatchCodec(latent_channels=channels)
    codec.fit(pictures * 2 - 1)
    return codec.eval().requires_grad_(False)


def test_with_every_direction_kept_the_round_trip_is_exact(pictures):
    codec = fitted(pictures, 48)

    back = decode_latents(codec, encode_images(codec, pictures))

    assert torch.allclose(back, pictures, atol=1e-4)


def test_error_falls_with_channels_and_stays_small_on_new_pictures(pictures):
    train, new = pictures[:48], pictures[48:]
    errors = []
    for channels in (4, 12, 24):
        codec = fitted(train, channels)
        errors.append(
            float((decode_latents(codec, encode_images(codec, new)) - new).square().mean())
        )

    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-3  # 30 dB


def test_latents_have_unit_variance_and_a_token_is_one_patch(pictures):
    codec = fitted(pictures, 24)
    latents = encode_images(codec, pictures)

    assert latents.shape == (64, 24, 8, 8)  # 32 px over the factor 4
    assert float(pack(latents).var((0, 1)).mean()) == pytest.approx(1, rel=0.05)
    changed = pictures.clone()
    changed[:, :, 8:16, 16:24] = 1 - changed[:, :, 8:16, 16:24]
    differs = (pack(encode_images(codec, changed)) - pack(latents)).abs().amax((0, 2)) > 1e-4
    assert differs.nonzero().flatten().tolist() == [1 * 4 + 2]  # row 1, column 2 of 4


def test_half_whitening_variance_is_proportional_to_the_deviation(pictures):
    codec = fitted(pictures, 24)
    patches = torch.nn.functional.pixel_unshuffle(pictures * 2 - 1, 8).permute(0, 2, 3, 1)
    patches = patches.flatten(0, 2).double()
    deviations = torch.linalg.eigvalsh(torch.cov(patches.T)).flip(0)[:16].sqrt()
    variances = pack(encode_images(codec, pictures)).var((0, 1)).sort(descending=True).values[:16]

    ratio = variances / deviations
    assert float(ratio.max() / ratio.min()) == pytest.approx(1, abs=0.05)


def test_saved_and_loaded_codec_is_the_same(pictures, tmp_path):
    codec = fitted(pictures, 24)
    codec.save_pretrained(tmp_path)

    again = PatchCodec.from_pretrained(tmp_path)
    again.requires_grad_(False)  # with gradients some processors convolve another way

    assert torch.equal(encode_images(codec, pictures), encode_images(again, pictures))


def seeing(pictures):
    """A codec with an image encoder of random weights, and the same codec without."""
    torch.manual_seed(0)
    codec = PatchCodec(30, semantic_channels=6, encoder_width=8, word_channels=16)
    torch.nn.init.normal_(codec.image_encoder.class_vectors)
    blind = fitted(pictures, 24)
    codec.take_pixels(blind)
    return codec.eval().requires_grad_(False), blind


def test_semantic_channels_come_last_and_leave_the_picture_as_it_is(pictures):
    codec, blind = seeing(pictures)
    latents = encode_images(codec, pictures)

    assert codec.pixel_channels == 24
    assert latents.shape == (64, 30, 8, 8)
    assert torch.allclose(latents[:, :24], encode_images(blind, pictures), atol=1e-6)
    assert torch.allclose(codec.encode_pixels(pictures * 2 - 1)[:, :24], latents[:, :24], atol=1e-6)
    assert codec.encode_pixels(pictures * 2 - 1)[:, 24:].abs().max() == 0
    changed = latents.clone()
    changed[:, 24:] += 1
    assert torch.equal(decode_latents(codec, changed), decode_latents(blind, latents[:, :24]))


def test_a_token_carries_the_features_of_its_pixels(pictures):
    codec, _ = seeing(pictures)
    seen = encode_images(codec, pictures)[:, 24:]

    tokens = torch.nn.functional.pixel_unshuffle(seen, 2)
    found = codec.image_encoder(pictures * 2 - 1, pictures.shape[-2:])
    assert torch.allclose(tokens, found, atol=1e-5)
    with pytest.raises(ValueError, match="tokens of 4 px"):
        PatchCodec(30, block_out_channels=(1, 1), semantic_channels=6)


def test_the_encoder_sees_the_photo_and_the_pixels_come_from_the_image(pictures):
    codec, _ = seeing(pictures)
    photos = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    images = torch.nn.functional.interpolate(photos, (32, 32), mode="area")
    sharp, soft = (codec.encode(images, photos=p).latent_dist.mode() for p in (photos, None))
    assert torch.equal(sharp[:, :24], soft[:, :24])
    assert not torch.allclose(sharp[:, 24:], soft[:, 24:], atol=0.1)


def test_an_encoder_of_another_zoom_brings_it_along(pictures, tmp_path):
    codec, _ = seeing(pictures)
    assert codec.image_encoder.sizes["zoom"] == 2  # as in files that do not tell
    other = ImageEncoder(channels=24, width=8, words=16, zoom=3).eval().requires_grad_(False)
    codec.take_image_encoder(other)
    codec.save_pretrained(tmp_path)
    again = PatchCodec.from_pretrained(tmp_path).requires_grad_(False)
    assert again.image_encoder.sizes["zoom"] == 3
    assert torch.allclose(encode_images(again, pictures), encode_images(codec, pictures), atol=1e-5)


def test_a_codec_that_sees_is_saved_without_its_backbone(pictures, tmp_path):
    codec, _ = seeing(pictures)
    codec.save_pretrained(tmp_path)
    again = PatchCodec.from_pretrained(tmp_path).requires_grad_(False)

    assert (tmp_path / "diffusion_pytorch_model.safetensors").stat().st_size < 300_000
    assert torch.allclose(encode_images(again, pictures), encode_images(codec, pictures), atol=1e-5)


def test_a_transform_of_other_channels_is_not_taken(pictures):
    codec = PatchCodec(latent_channels=12)
    with pytest.raises(ValueError, match="24 pixel channels, expected 12"):
        codec.take_pixels(fitted(pictures, 24))
