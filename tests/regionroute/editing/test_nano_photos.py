"""What the default base and its experts do on real photos: the word chooses, the expert paints."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from regionroute.data.images import resize
from regionroute.editing.editor import Editor
from regionroute.editing.request import EditOptions, EditRequest
from regionroute.models.bundled import bundled_experts
from regionroute.models.loading import load_base

SIDE = 128


@pytest.fixture(scope="module")
def editor() -> Editor:
    return Editor(load_base("nano-photos"), bundled_experts("nano-photos"))


@pytest.fixture(scope="module")
def both() -> Tensor:
    """A cat on the left, a cup of coffee on the right, [3,128,256]."""
    data = pytest.importorskip("skimage.data")
    tiles = []
    for array in (data.chelsea()[:, 60:360], data.coffee()[:, 100:500]):
        photo = torch.from_numpy(array.copy()).permute(2, 0, 1)[None] / 255
        tiles.append(resize(photo, (SIDE, SIDE))[0].clamp(0, 1))
    return torch.cat(tiles, -1)


def changed(editor: Editor, image: Tensor, word: str, style: str = "neon") -> Tensor:
    """Pixels that an edit changes visibly, bool [H,W]."""
    edit = editor.edit(image, EditRequest(word, style), EditOptions(refine_crop=False))
    return (edit.image - image).abs().amax(0) > 0.1


def test_the_word_chooses_between_two_objects(editor: Editor, both: Tensor) -> None:
    cat, cup = (changed(editor, both, word) for word in ("cat", "cup"))
    on_the_left = [float(edit[:, :SIDE].sum() / edit.sum()) for edit in (cat, cup)]
    assert on_the_left[0] > 0.9
    assert on_the_left[1] < 0.25
    assert min(cat.float().mean(), cup.float().mean()) > 0.05


def test_the_experts_paint(editor: Editor, both: Tensor) -> None:
    """Without them, the same region would look otherwise in at least half of its pixels."""
    options = EditOptions(refine_crop=False)
    mask = torch.zeros(both.shape[-2:])
    mask[:, :SIDE] = 1
    given = EditRequest("cat", "blueprint", regions=(mask,))
    painted = editor.edit(both, given, options).image
    zeroed = Editor(load_base("nano-photos"), bundled_experts("nano-photos"))
    for name, weights in zeroed.backbone.transformer.named_parameters():
        if "lora" in name.lower() or "expert" in name.lower():
            weights.data.zero_()
    plain = zeroed.edit(both, given, options).image
    different = (painted - plain).abs().amax(0)[mask > 0] > 0.1
    assert different.float().mean() > 0.5
    assert torch.equal(painted[:, mask == 0], both[:, mask == 0])


def test_photos_are_seen_in_their_own_detail(editor: Editor) -> None:
    data = pytest.importorskip("skimage.data")
    photo = torch.from_numpy(data.coffee().copy()).permute(2, 0, 1)[None] / 255
    backbone = editor.backbone
    size = backbone.fit_size(*photo.shape[-2:])
    small = resize(photo, size)
    sharp, soft = (backbone.encode_images(image, size) for image in (photo, small))
    assert torch.equal(soft, backbone.encode_images(small))
    own = backbone.vae.pixel_channels
    assert torch.equal(sharp[:, :own], soft[:, :own])
    assert (sharp[:, own:] - soft[:, own:]).abs().mean() > 0.1
    # So do edits: their maps are of the photo, not of the image that the base sees.
    options = EditOptions(refine_crop=False)
    maps = []
    for image in (photo, small):
        edit = editor.edit(image[0], EditRequest("cup", "neon"), options, want_map=True)
        assert edit.region_map is not None
        maps.append(edit.region_map)
    assert (maps[0] - maps[1]).abs().max() > 0.02


def test_absent_objects_are_left_alone(editor: Editor, both: Tensor) -> None:
    absent = [
        "elephant", "pizza", "laptop", "locomotive", "sunflower", "umbrella", "bicycle", "zebra",
        "piano", "lighthouse", "carrot", "airplane", "tiger", "scissors", "boat", "tree", "helmet",
        "strawberry", "guitar", "clock",
    ]  # fmt: skip
    presence = editor.backbone.presence(both[None], [["cat", "cup", *absent]])
    assert presence is not None
    refused = presence[0] < editor.routing.presence
    assert not refused[:2].any()
    assert refused[2:].float().mean() > 0.7
    edit = editor.edit(both, EditRequest("locomotive", "neon"), EditOptions(refine_crop=False))
    assert edit.settings["left_unchanged"] == ["locomotive"]
    assert torch.equal(edit.image, both)
