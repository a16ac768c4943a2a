"""Files that are no images we read, or too large, or no files at all: one clear sentence each."""

import errno
import io
import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from regionroute.data import image_files
from regionroute.data.image_files import FORMATS, image_header, image_size, images_in, max_pixels
from regionroute.data.images import read_image
from regionroute.data.masks import read_mask
from regionroute.errors import UserError

SMOOTH = np.linspace(0, 255, 64 * 48 * 3).reshape(48, 64, 3).astype(np.uint8)
READERS = (read_image, read_mask, image_size)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000"])
def test_formats_are_recognised_by_content(tmp_path, form):
    assert form in FORMATS
    Image.fromarray(SMOOTH).save(tmp_path / "a.dat", format=form)
    assert read_image(tmp_path / "a.dat").shape == (3, 48, 64)
    assert image_size(tmp_path / "a.dat") == (48, 64)


def test_of_a_stereo_image_the_first_view(tmp_path):
    image = Image.fromarray(SMOOTH)
    image.save(tmp_path / "a.mpo", save_all=True, append_images=[Image.new("RGB", (64, 48))])
    assert read_image(tmp_path / "a.mpo").mean() > 0.4


def test_heic_is_read_where_its_package_is_installed(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(Image.fromarray(SMOOTH)).save(tmp_path / "a.jpg", quality=100)
    assert read_image(tmp_path / "a.jpg").shape == (3, 48, 64)


def test_heic_names_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99))
    with pytest.raises(UserError, match=r"is HEIC, .* pip install pillow-heif"):
        read_image(tmp_path / "a.heic")


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{ } loop\n", "PostScript"),
        (b"%PDF-1.7\n", "PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"", "it is empty"),
    ],
)
def test_other_formats_are_named_and_not_opened(tmp_path, monkeypatch, read, content, named):
    (tmp_path / "a.jpg").write_bytes(content)
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("started a program"))
    with pytest.raises(UserError, match=named) as caught:
        read(tmp_path / "a.jpg")
    assert "JPEG, PNG, WebP" in str(caught.value)


@pytest.mark.parametrize("form", ["PPM", "TGA", "PCX", "ICO", "SGI"])
def test_formats_nobody_means_are_refused(tmp_path, form):
    Image.fromarray(SMOOTH).save(tmp_path / "a.png", format=form)
    with pytest.raises(UserError, match="not an image of a known format"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("read", READERS)
def test_special_files_are_refused_at_once(tmp_path, read):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")
    for name, reason in (
        ("pipe.png", "a device, pipe or socket"),
        ("device.png", "a device, pipe or socket"),
        ("circle.png", "links lead in a circle"),
        ("a\0b.png", "no file can have this name"),
        ("a\udc80b.png", "no such"),
        ("x" * 300, "file name is too long"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            read(tmp_path / name)
        assert "\0" not in str(caught.value)


def test_a_float_tiff_with_nan_is_refused(tmp_path):
    grey = SMOOTH[..., 0].astype(np.float32)
    grey[0, 0] = np.nan
    Image.fromarray(grey).save(tmp_path / "a.tiff")
    with pytest.raises(UserError, match=r"a\.tiff: the image holds values that are not finite"):
        read_image(tmp_path / "a.tiff")


def test_the_limit_of_pixels_can_be_raised(tmp_path, monkeypatch):
    Image.new("1", (9000, 9000)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="9000x9000 pixels are too many, the limit is 64 million"):
        image_size(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)  # twice that is an error of Pillow's
    with pytest.raises(UserError, match="REGIONROUTE_MAX_PIXELS"):
        image_size(tmp_path / "a.png")
    monkeypatch.setenv("REGIONROUTE_MAX_PIXELS", "81000000")
    assert image_size(tmp_path / "a.png") == (9000, 9000)
    monkeypatch.setenv("REGIONROUTE_MAX_PIXELS", "many")
    with pytest.raises(UserError, match="'many': give a whole number"):
        max_pixels()


def test_exhausted_memory_is_not_called_damage(tmp_path, monkeypatch):
    Image.fromarray(SMOOTH).save(tmp_path / "a.png")

    def exhausted(*_, **__):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", exhausted)
    monkeypatch.setattr(Image.Image, "load", exhausted)
    with pytest.raises(UserError, match="not enough memory") as caught:
        read_image(tmp_path / "a.png")
    assert "damaged" not in str(caught.value)


def test_a_failing_disk_is_not_called_damage(tmp_path, monkeypatch):
    Image.fromarray(SMOOTH).save(tmp_path / "a.png")

    def failing(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Image, "open", failing)
    with pytest.raises(UserError, match=r"cannot be read: Input/output error"):
        read_image(tmp_path / "a.png")


def test_decoding_needs_no_more_than_its_result(tmp_path):
    """8-bit pixels, their copy in float and nothing besides: 15 bytes a pixel and some slack."""
    resource = pytest.importorskip("resource")
    Image.new("RGB", (3000, 4000), "red").save(tmp_path / "a.png")
    read_image(tmp_path / "a.png")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    images = [read_image(tmp_path / "a.png")]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert images[0].shape == (3, 4000, 3000)
    assert grown < 25 * 12e6


def test_header(tmp_path):
    exif = Image.Exif()
    exif[image_files.ORIENTATION] = 6
    Image.fromarray(SMOOTH).save(tmp_path / "a.jpg", exif=exif)
    assert image_header(tmp_path / "a.jpg") == image_files.ImageHeader((64, 48), 6)
    exif[image_files.ORIENTATION] = 77
    Image.fromarray(SMOOTH).save(tmp_path / "a.jpg", exif=exif)
    assert image_header(tmp_path / "a.jpg") == image_files.ImageHeader((48, 64), 1)
    assert torch.isfinite(read_image(tmp_path / "a.jpg")).all()


def test_damage_is_one_line(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(SMOOTH).save(buffer, format="PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue()[:90])
    with pytest.raises(UserError, match="it is damaged") as caught:
        read_image(tmp_path / "a.png")
    assert "\n" not in str(caught.value)


def test_a_folder_s_images_are_those_of_every_format_but_hidden_ones(tmp_path):
    for name in ("b.HEIC", "a.avif", "._a.avif", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    assert [file.name for file in images_in(tmp_path)] == ["a.avif", "b.HEIC"]
    with pytest.raises(UserError, match=r"notes\.txt: this is a file, give a folder of images"):
        images_in(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="none: no such folder of images, check the path"):
        images_in(tmp_path / "none")
