"""Pictures of any mode, masks, atomic files, hashes."""

import dataclasses
import errno
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import BaseModel

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


def test_mask_threshold_is_128(tmp_path):
    mask = io.read_mask(_save(tmp_path / "m.png", Image.fromarray(GREY)), size=(2, 3))
    assert torch.equal(mask, torch.tensor([[[0.0, 0, 1], [0, 1, 1]]]))


@pytest.mark.parametrize("mode", ["RGB", "P", "LA", "I;16"])
def test_masks_of_any_mode(tmp_path, mode):
    picture = Image.fromarray(GREY).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        picture = Image.fromarray(GREY.astype(np.uint16) * 257)
    mask = io.read_mask(_save(tmp_path / "m.png", picture))
    assert torch.equal(mask, torch.tensor([[[0.0, 0, 1], [0, 1, 1]]]))


def test_transparent_parts_of_a_mask_are_outside(tmp_path):
    rgba = np.full((2, 3, 4), 255, dtype=np.uint8)
    rgba[0, :, 3] = 0
    mask = io.read_mask(_save(tmp_path / "m.png", Image.fromarray(rgba)))
    assert torch.equal(mask, torch.tensor([[[0.0, 0, 0], [1, 1, 1]]]))


def test_a_mask_of_another_size_is_refused(tmp_path):
    path = _save(tmp_path / "m.png", Image.fromarray(GREY))
    with pytest.raises(UserError, match=r"m\.png: the mask is 3x2 pixels but its picture is 5x4"):
        io.read_mask(path, size=(4, 5))


@pytest.mark.parametrize("read", [io.read_image, io.read_mask, io.image_size])
@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("none.png", None, "no such"),
        ("folder.png", "folder", "this is a folder"),
        ("text.png", b"hello", "damaged or not a picture"),
        ("empty.png", b"", "damaged or not a picture"),
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
    "image", [torch.zeros(2, 4, 4), torch.zeros(4, 4), torch.full((1, 2, 2), torch.nan)]
)
def test_what_cannot_be_drawn_is_refused(tmp_path, image):
    with pytest.raises(ValueError, match=r"expected|not finite"):
        io.write_image(tmp_path / "a.png", image)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.jpg", "a"])
def test_only_png_is_written(tmp_path, name):
    with pytest.raises(UserError, match=r"ends in \.png"):
        io.write_image(tmp_path / name, torch.zeros(3, 2, 2))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail():
        with io.atomic_write(path) as temporary:
            temporary.write_text("half")
            assert temporary.parent == tmp_path
            assert temporary.suffix == ".txt"
            assert path.read_text() == "old"
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with io.atomic_write(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_names_the_file_it_was_for(tmp_path):
    def fail():
        with io.atomic_write(tmp_path / "summary.json"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left on device: ") as caught:
        fail()
    assert caught.value.filename == str(tmp_path / "summary.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        io.write_json(tmp_path / "folder", {})
    assert caught.value.filename == str(tmp_path / "folder")


@dataclasses.dataclass
class _Row:
    name: str
    place: Path


class _Settings(BaseModel):
    rank: int = 4


def test_json_round_trips(tmp_path):
    io.write_json(tmp_path / "a.json", {"row": _Row("ä", Path("b/c")), "settings": _Settings()})
    assert io.read_json(tmp_path / "a.json") == {
        "row": {"name": "ä", "place": "b/c"},
        "settings": {"rank": 4},
    }
    rows = [{"text": "two\nlines \u2028"}, {"n": 1}]
    io.write_jsonl(tmp_path / "a.jsonl", rows)
    assert io.read_jsonl(tmp_path / "a.jsonl") == rows
    with pytest.raises(TypeError, match="object cannot be written as JSON"):
        io.write_json(tmp_path / "b.json", object())
    assert not (tmp_path / "b.json").exists()


def test_jsonl_skips_empty_lines_and_a_byte_order_mark(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": 2}')
    assert io.read_jsonl(tmp_path / "a.jsonl") == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"a": 1}\n{"a": \n', r"rows\.jsonl:2: this line is not JSON"),
        (b'{"a": 1}\n\n[1]\n', r"rows\.jsonl:3: this line must be a JSON object"),
        (b"\xff\xfe", r"rows\.jsonl: this is not UTF-8"),
        (None, r"rows\.jsonl: no such file"),
    ],
)
def test_bad_rows_are_named(tmp_path, content, told):
    if content is not None:
        (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=told):
        io.read_jsonl(tmp_path / "rows.jsonl")


def test_bad_json_is_named(tmp_path):
    (tmp_path / "a.json").write_text("{\n1}")
    with pytest.raises(UserError, match=r"a\.json:2: this is not JSON"):
        io.read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match="this is a folder"):
        io.read_json(tmp_path)


def test_hashes(tmp_path):
    (tmp_path / "a").write_bytes(b"gem")
    assert io.file_hash(tmp_path / "a") == io.text_hash("gem")
    assert len(io.text_hash("gem")) == 16
    # SHA-256 of the empty string, from the standard.
    assert io.text_hash("") == "e3b0c44298fc1c14"
    assert io.settings_hash({"a": 1, "b": [2.5]}) == io.settings_hash({"b": [2.5], "a": 1})
    assert io.settings_hash({"a": 1}) != io.settings_hash({"a": 2})
    assert io.settings_hash(_Settings()) == io.settings_hash({"rank": 4})
