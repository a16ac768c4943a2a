"""Pictures of any mode, masks, formats."""

import numpy as np
import pytest
import torch
from PIL import Image

from regionroute.data import images as io
from regionroute.errors import UserError

GREY = np.array([[0, 127, 128], [64, 200, 255]], dtype=np.uint8)


def _save(path, image, **options):
    image.save(path, **options)
    return path


def _bright(expected):
    return torch.tensor(expected, dtype=torch.float32).expand(3, 2, 3)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "CMYK"])
def test_any_mode_becomes_rgb(tmp_path, mode):
    suffix = "tiff" if mode == "CMYK" else "png"
    path = _save(tmp_path / f"a.{suffix}", Image.fromarray(GREY).convert(mode))
    image = io.read_image(path)
    assert image.shape == (3, 2, 3)
    assert image.dtype == torch.float32
    torch.testing.assert_close(image, _bright(GREY / 255), atol=0, rtol=0)


def test_one_bit_pictures(tmp_path):
    path = _save(tmp_path / "a.png", Image.fromarray(GREY > 127))
    assert torch.equal(io.read_image(path), _bright((GREY > 127) * 1.0))


def test_sixteen_bit_grey_is_scaled(tmp_path):
    path = _save(tmp_path / "a.png", Image.fromarray(GREY.astype(np.uint16) * 257))
    torch.testing.assert_close(io.read_image(path), _bright(GREY / 255))


@pytest.mark.parametrize("top", [1.0, 255.0])
def test_float_tiff(tmp_path, top):
    path = _save(tmp_path / "a.tiff", Image.fromarray(GREY.astype(np.float32) / 255 * top))
    torch.testing.assert_close(io.read_image(path), _bright(GREY / 255))


def test_transparency_lies_over_white(tmp_path):
    rgba = np.zeros((2, 3, 4), dtype=np.uint8)
    rgba[0, 0] = (255, 0, 0, 255)
    rgba[0, 1] = (0, 0, 0, 51)
    image = io.read_image(_save(tmp_path / "a.png", Image.fromarray(rgba)))
    torch.testing.assert_close(image[:, 0, 0], torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(image[:, 0, 1], torch.full((3,), 0.8))
    torch.testing.assert_close(image[:, 1], torch.ones(3, 3))


def test_transparency_of_palette_pictures(tmp_path):
    picture = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), mode="L").convert("P")
    path = _save(tmp_path / "a.png", picture, transparency=1)
    assert torch.equal(io.read_image(path)[:, 0, 1], torch.ones(3))


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, shown standing
    path = _save(tmp_path / "a.png", Image.fromarray(GREY), exif=exif)
    assert io.read_image(path).shape == (3, 3, 2)
    assert io.image_size(path) == (3, 2)
    torch.testing.assert_close(
        io.read_image(path)[0], torch.tensor(np.rot90(GREY, -1) / 255).float()
    )


def test_of_an_animation_the_first_frame(tmp_path):
    frames = [Image.new("RGB", (3, 2), colour) for colour in ("red", "blue")]
    path = _save(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert torch.equal(io.read_image(path)[:, 0, 0], torch.tensor([1.0, 0.0, 0.0]))
    assert io.open_image(path).notes == ("only its first frame is read",)


@pytest.mark.parametrize("read", [io.read_image, io.read_mask, io.image_size])
@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("none.png", None, "no such"),
        ("folder.png", "folder", "this is a folder"),
        ("text.png", b"hello", "damaged or not an image"),
        ("empty.png", b"", "damaged or not an image"),
    ],
)
def test_what_is_no_picture_is_refused(tmp_path, read, name, content, told):
    if content == "folder":
        (tmp_path / name).mkdir()
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=told) as caught:
        read(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tiff"])
def test_truncated_pictures_are_refused(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = _save(tmp_path / f"a.{suffix}", Image.fromarray(noise))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="damaged"):
        io.read_image(path)


def test_damaged_pixels_are_not_taken_for_damaged_exif(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = _save(tmp_path / "a.png", Image.fromarray(noise))
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        io.open_image(path)


def test_what_is_transparent_has_the_colours_next_to_it():
    image = torch.zeros(4, 100, 100)
    image[0, :, :50], image[3, :, :50] = 1, 1  # red on the left, hidden black on the right
    loaded = io.split_alpha(image)
    red, white = torch.tensor([1.0, 0, 0]), torch.ones(3)
    assert torch.equal(loaded.rgb[:, :, :50], image[:3, :, :50])
    assert torch.allclose(loaded.rgb[:, 50, 53], red, atol=1e-5)
    assert torch.allclose(loaded.rgb[:, 50, 80], white, atol=1e-5)
    assert torch.equal(loaded.restored(loaded.rgb), image)
    hidden = io.split_alpha(torch.zeros(4, 3, 5))
    assert torch.equal(hidden.rgb, torch.ones(3, 3, 5))


def test_pictures_survive_the_disk_bit_by_bit(tmp_path):
    image = torch.arange(3 * 8 * 8).reshape(3, 8, 8) / 255
    io.write_image(tmp_path / "new" / "a.png", image, {"parameters": '{"seed": 3, "ü": "é"}'})
    assert torch.equal(io.read_image(tmp_path / "new" / "a.png"), image)
    with Image.open(tmp_path / "new" / "a.png") as written:
        assert written.text == {"parameters": '{"seed": 3, "ü": "é"}'}
    assert torch.equal(io.from_pil(io.to_pil(image)), image)


def test_values_are_rounded_and_clamped():
    image = torch.tensor([[[-0.5, 0.5 / 255 + 1e-4, 2.0]]])
    assert np.array(io.to_pil(image)).tolist() == [[0, 1, 255]]
    assert io.to_pil(image).mode == "L"


@pytest.mark.parametrize(
    "image", [torch.zeros(5, 4, 4), torch.zeros(4, 4), torch.full((1, 2, 2), torch.nan)]
)
def test_what_cannot_be_drawn_is_refused(tmp_path, image):
    with pytest.raises(ValueError, match=r"expected|not finite"):
        io.write_image(tmp_path / "a.png", image)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.jpg", "a"])
def test_only_png_is_written(tmp_path, name):
    with pytest.raises(UserError, match=r"ends in \.png"):
        io.write_image(tmp_path / name, torch.zeros(3, 2, 2))
