"""Masks however they are encoded: the same object for every command, or a question."""

import numpy as np
import pytest
import torch
from PIL import Image

from regionroute.data.masks import mask_from_pil, read_mask, read_soft_mask
from regionroute.errors import UserError

GREY = np.array([[0, 127, 128], [64, 200, 255]], dtype=np.uint8)
INSIDE = np.zeros((40, 60), bool)
INSIDE[10:30, 20:50] = True
PHOTO = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def _save(path, image, **options):
    image.save(path, **options)
    return path


def _expected(inside=INSIDE):
    return torch.from_numpy(inside)[None].float()


def _rgba(colour, alpha):
    return Image.fromarray(np.dstack([np.broadcast_to(colour, (40, 60, 3)), alpha]).astype("u1"))


def _palette():
    image = Image.fromarray(INSIDE.astype(np.uint8), "P")
    image.putpalette([0, 0, 0, 255, 255, 255])
    return image


LEVELS = np.where(INSIDE, 255, 0)
ENCODINGS = {
    "8 bits": lambda: Image.fromarray(LEVELS.astype(np.uint8)),
    "1 bit": lambda: Image.fromarray(INSIDE),
    "zero and one": lambda: Image.fromarray(INSIDE.astype(np.uint8)),
    "zero and one in RGB": lambda: Image.fromarray(INSIDE.astype(np.uint8)).convert("RGB"),
    "palette": _palette,
    "16 bits": lambda: Image.fromarray(INSIDE.astype(np.uint16) * 65535),
    "8 bits in 16": lambda: Image.fromarray(INSIDE.astype(np.uint16) * 255),
    "zero and one in 16 bits": lambda: Image.fromarray(INSIDE.astype(np.uint16)),
    "opaque RGBA": lambda: Image.fromarray(LEVELS.astype(np.uint8)).convert("RGBA"),
    "cut-out photo": lambda: _rgba(PHOTO, LEVELS),
    "white on transparent": lambda: _rgba(255, LEVELS),
    "black on transparent": lambda: _rgba(0, LEVELS),
    "coloured sticker": lambda: _rgba((200, 30, 30), LEVELS),
    "alpha of zero and one": lambda: _rgba(PHOTO, INSIDE),
    "grey and alpha": lambda: _rgba(PHOTO[..., :1], LEVELS).convert("LA"),
}


@pytest.mark.parametrize("read", [read_mask, read_soft_mask])
@pytest.mark.parametrize("name", ENCODINGS)
def test_every_encoding_is_the_same_mask(tmp_path, name, read):
    path = _save(tmp_path / "m.png", ENCODINGS[name]())
    assert torch.equal(read(path, (40, 60)), _expected())


def test_float_masks(tmp_path):
    for top in (1.0, 255.0):
        path = _save(tmp_path / "m.tiff", Image.fromarray(INSIDE.astype(np.float32) * top))
        assert torch.equal(read_mask(path), _expected())


def test_threshold_is_128(tmp_path):
    mask = read_mask(_save(tmp_path / "m.png", Image.fromarray(GREY)), size=(2, 3))
    assert torch.equal(mask, torch.tensor([[[0.0, 0, 1], [0, 1, 1]]]))


@pytest.mark.parametrize("mode", ["RGB", "P", "LA", "I;16"])
def test_levels_of_any_mode(tmp_path, mode):
    image = Image.fromarray(GREY).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(GREY.astype(np.uint16) * 257)
    mask = read_mask(_save(tmp_path / "m.png", image))
    assert torch.equal(mask, torch.tensor([[[0.0, 0, 1], [0, 1, 1]]]))


def test_soft_masks_keep_their_levels(tmp_path):
    path = _save(tmp_path / "m.png", Image.fromarray(GREY))
    assert torch.equal(read_soft_mask(path), torch.from_numpy(GREY).float()[None] / 255)
    dark = _save(tmp_path / "d.png", Image.fromarray(np.uint8([[0, 60], [100, 30]])))
    assert read_soft_mask(dark).max() == pytest.approx(100 / 255)
    jpeg = _save(tmp_path / "m.jpg", Image.fromarray(LEVELS.astype(np.uint8)).convert("RGB"))
    assert torch.equal(read_mask(jpeg), _expected())


SIDES = np.broadcast_to(np.arange(60) < 35, (40, 60))
UNCLEAR = {
    "the photo itself": (lambda: Image.fromarray(PHOTO), "coloured image"),
    "red on black": (
        lambda: Image.fromarray(INSIDE[..., None] * np.uint8([200, 0, 0])),
        "coloured image",
    ),
    "several labels": (
        lambda: Image.fromarray((INSIDE + SIDES * 1).astype(np.uint8)),
        "levels are 0, 1, 2",
    ),
    "labels and void": (
        lambda: Image.fromarray(np.where(SIDES, INSIDE * 1, 255).astype(np.uint8)),
        "levels are 0, 1, 255",
    ),
    "black and white, with another transparency": (
        lambda: _rgba(LEVELS[..., None], np.where(SIDES, 255, 0)),
        "not clear which one is meant",
    ),
    "empty": (lambda: Image.new("L", (60, 40)), "the mask is empty"),
    "empty alpha": (lambda: _rgba(0, np.zeros((40, 60))), "the mask is empty"),
    "NaN": (lambda: Image.fromarray(np.full((40, 60), np.nan, np.float32)), "not finite"),
}


@pytest.mark.parametrize("read", [read_mask, read_soft_mask])
@pytest.mark.parametrize("name", UNCLEAR)
def test_what_is_unclear_or_empty_is_refused_with_a_remedy(tmp_path, name, read):
    make, reason = UNCLEAR[name]
    path = _save(tmp_path / ("m.tiff" if name == "NaN" else "m.png"), make())
    with pytest.raises(UserError, match=reason) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "save it as a grey image" in str(caught.value)


def test_a_dark_mask_is_empty(tmp_path):
    path = _save(tmp_path / "m.png", Image.fromarray(np.where(INSIDE, 100, 0).astype(np.uint8)))
    with pytest.raises(UserError, match=r"the mask is empty, no pixel reaches 128 of 255, .* 100"):
        read_mask(path)


def test_a_mask_of_another_size_is_refused(tmp_path):
    path = _save(tmp_path / "m.png", Image.fromarray(GREY))
    with pytest.raises(UserError, match=r"m\.png: the mask is 3x2 pixels but its image is 5x4"):
        read_mask(path, size=(4, 5))


def test_masks_from_memory_follow_the_same_rule():
    for make in ENCODINGS.values():
        assert torch.equal(mask_from_pil(make()), _expected())
    with pytest.raises(UserError, match="region_mask: the mask is empty"):
        mask_from_pil(Image.new("L", (4, 4)), "region_mask")
