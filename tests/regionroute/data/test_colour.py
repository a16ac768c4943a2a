"""Colour profiles, transparency and EXIF: kept by edits, converted for labels and training."""

import struct
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from regionroute.data.colour import profile_name, profile_space, to_srgb
from regionroute.data.images import open_image, read_image, write_image

NOISE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _fixed(value):
    return struct.pack(">i", round(value * 65536))


def profile(space=b"RGB ", primaries=(), gamma=2.2):
    """A small ICC profile: a matrix profile (columns of XYZ) or a grey one, with a gamma."""
    curve = (
        b"curv" + bytes(4) + struct.pack(">I", 1) + struct.pack(">H", round(gamma * 256)) + b"\0\0"
    )
    text = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(79)
    xyz = lambda v: b"XYZ " + bytes(4) + b"".join(map(_fixed, v))  # noqa: E731
    tags = {b"desc": text, b"wtpt": xyz((0.9642, 1.0, 0.8249))}
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        for name, column in zip((b"r", b"g", b"b"), primaries, strict=True):
            tags |= {name + b"XYZ": xyz(column), name + b"TRC": curve}
    table, body, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", offset + len(body), len(data))
        body += data
    header = struct.pack(">I", offset + len(body)) + b"lcms" + struct.pack(">I", 0x02100000)
    header += (
        b"mntr"
        + space
        + b"XYZ "
        + bytes(12)
        + b"acsp"
        + bytes(28)
        + b"".join(map(_fixed, (0.9642, 1.0, 0.8249)))
    )
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


ADOBE = profile(
    primaries=(
        (0.60974, 0.31111, 0.01947),
        (0.20528, 0.62567, 0.06087),
        (0.14919, 0.06322, 0.74457),
    )
)  # Adobe RGB (1998), adapted to D50
GREY = profile(b"GRAY", gamma=1.0)


def reference(image, icc, mode):
    """What lcms makes of it by itself."""
    source = ImageCms.ImageCmsProfile(BytesIO(icc))
    converted = ImageCms.profileToProfile(
        image, source, ImageCms.createProfile("sRGB"), renderingIntent=1, outputMode=mode
    )
    return torch.from_numpy(np.array(converted)).permute(2, 0, 1) / 255


def test_profiles_are_recognised():
    assert profile_space(ADOBE) == "RGB "
    assert profile_space(GREY) == "GRAY"
    assert profile_space(b"damaged") is None
    assert profile_name(ADOBE) == "test"


def test_labels_and_training_see_srgb(tmp_path):
    image = Image.fromarray(NOISE)
    image.save(tmp_path / "adobe.png", icc_profile=ADOBE)
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "srgb.png", icc_profile=SRGB)
    plain = read_image(tmp_path / "plain.png")
    adobe = read_image(tmp_path / "adobe.png")
    assert torch.equal(read_image(tmp_path / "srgb.png"), plain)
    torch.testing.assert_close(adobe, reference(image, ADOBE, "RGB"), rtol=0, atol=1e-6)
    assert (adobe - plain).abs().max() > 10 / 255


def test_a_profile_of_another_space_or_a_damaged_one_changes_nothing(tmp_path):
    image = Image.fromarray(NOISE)
    for icc in (GREY, b"damaged", ADOBE[:200]):
        image.save(tmp_path / "a.png", icc_profile=icc)
        assert torch.equal(
            read_image(tmp_path / "a.png") * 255, torch.from_numpy(NOISE).permute(2, 0, 1).float()
        )


def test_grey_and_transparent_images_are_converted_too(tmp_path):
    grey = Image.fromarray(NOISE[..., 0])
    grey.save(tmp_path / "grey.png", icc_profile=GREY)
    brighter = read_image(tmp_path / "grey.png")[0] * 255
    assert brighter[NOISE[..., 0] == 55].mean() == pytest.approx(128, abs=2)  # of linear light
    rgba = Image.fromarray(NOISE).convert("RGBA")
    rgba.putalpha(Image.fromarray(np.where(NOISE[..., 0] > 99, 255, 0).astype(np.uint8)))
    rgba.info["icc_profile"] = ADOBE
    converted = to_srgb(rgba)
    assert converted.mode == "RGBA"
    assert converted.getchannel("A").tobytes() == rgba.getchannel("A").tobytes()
    assert np.abs(np.asarray(converted)[..., :3].astype(int) - NOISE).max() > 10


def test_edits_keep_profile_and_pixels(tmp_path):
    Image.fromarray(NOISE).save(tmp_path / "a.png", icc_profile=ADOBE)
    loaded = open_image(tmp_path / "a.png")
    assert loaded.icc_profile == ADOBE
    assert (loaded.alpha, loaded.exif, loaded.notes) == (None, None, ())
    write_image(tmp_path / "b.png", loaded.restored(loaded.rgb), icc_profile=loaded.icc_profile)
    with Image.open(tmp_path / "b.png") as written:
        assert np.array_equal(np.asarray(written), NOISE)
        assert written.info["icc_profile"] == ADOBE


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_profiles_that_a_colour_png_cannot_hold_are_converted_and_named(tmp_path, mode):
    image = Image.fromarray(NOISE[..., 0] if mode == "L" else NOISE).convert(mode)
    icc = GREY if mode == "L" else profile(b"CMYK", primaries=((1, 0, 0),) * 3)
    image.save(tmp_path / "a.tiff", icc_profile=icc)
    loaded = open_image(tmp_path / "a.tiff")
    assert loaded.icc_profile is None
    assert torch.equal(loaded.rgb, read_image(tmp_path / "a.tiff"))
    (note,) = loaded.notes
    assert "converted to sRGB" in note


def test_edits_keep_transparency(tmp_path):
    alpha = np.zeros((24, 32), np.uint8)
    alpha[6:18, 8:24] = 255
    alpha[6:18, 8] = 51  # an edge, 80 % transparent
    rgba = np.dstack([NOISE, alpha])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    loaded = open_image(tmp_path / "a.png")
    assert torch.equal(loaded.alpha, torch.from_numpy(alpha)[None] / 255)
    assert torch.equal(loaded.rgb[:, alpha > 0] * 255, torch.from_numpy(NOISE[alpha > 0]).T.float())
    write_image(tmp_path / "b.png", loaded.restored(loaded.rgb))
    with Image.open(tmp_path / "b.png") as written:
        assert np.array_equal(np.asarray(written), rgba)  # also the hidden colours
    edited = loaded.restored(torch.zeros(3, 24, 32))
    assert edited.shape == (4, 24, 32)
    assert (edited[:3, alpha > 0] == 0).all()
    assert torch.equal(edited[3:], loaded.alpha)


def test_an_opaque_alpha_is_none(tmp_path):
    Image.fromarray(NOISE).convert("RGBA").save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png").alpha is None


def test_exif_is_kept_without_its_rotation(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a maker"
    Image.fromarray(NOISE).save(tmp_path / "a.jpg", exif=exif)
    loaded = open_image(tmp_path / "a.jpg")
    assert loaded.rgb.shape == (3, 32, 24)
    write_image(tmp_path / "b.png", loaded.rgb, {"parameters": "x"}, exif=loaded.exif)
    with Image.open(tmp_path / "b.png") as written:
        found = written.getexif()
        assert (found.get(0x010F), found.get(0x0112, 1)) == ("a maker", 1)
        assert written.text["parameters"] == "x"
    assert read_image(tmp_path / "b.png").shape == (3, 32, 24)
    assert open_image(tmp_path / "b.png").exif is not None
    Image.fromarray(NOISE).save(tmp_path / "c.png")
    assert open_image(tmp_path / "c.png").exif is None


def test_grey_with_alpha_is_written(tmp_path):
    write_image(tmp_path / "a.png", torch.rand(2, 4, 4))
    with Image.open(tmp_path / "a.png") as written:
        assert written.mode == "LA"
