"""Routed editing through the small random Kontext pipeline: the same code at another size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regionroute.data.prompts import restyle_prompt
from regionroute.editing.editor import Editor
from regionroute.editing.request import EditOptions, EditRequest
from regionroute.errors import UserError
from regionroute.models.backbone import Backbone
from regionroute.models.loading import load_base


def picture(height: int = 24, width: int = 40, seed: int = 0) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def editor(tiny_backbone: Backbone, tiny_experts: Path) -> Editor:
    return Editor(tiny_backbone, tiny_experts)


def test_closed_gates_return_the_context(editor: Editor) -> None:
    image = picture()
    codec = editor.backbone.decode_latents(editor.backbone.encode_images(image[None]))[0]
    closed = (torch.zeros(24, 40),)
    loose = editor.edit(
        image,
        EditRequest("dog", "lines", regions=closed),
        EditOptions(mode="routed", steps=3, lock_background=False),
    )
    torch.testing.assert_close(loose.image, codec, atol=1e-5, rtol=0)
    locked = editor.edit(
        image, EditRequest("dog", "lines", regions=closed), EditOptions(mode="routed", steps=3)
    )
    assert torch.equal(locked.image, image)


def test_open_gates_give_the_plain_global_edit(editor: Editor) -> None:
    image = picture()
    editor.routing = editor.routing.model_copy(update={"prompt": "image"})
    routed = editor.edit(
        image,
        EditRequest("dog", "lines", regions=(torch.ones(24, 40),), seed=2),
        EditOptions(mode="routed", steps=3, lock_background=False),
    )
    prompt = (
        restyle_prompt("line-art").replace("image", "[image]").replace("line-art", "{line-art}")
    )
    plain = editor.edit(
        image,
        EditRequest("image", "lines", prompt=prompt, seed=2),
        EditOptions(mode="plain", steps=3),
    )
    assert plain.prompt == restyle_prompt("line-art")
    torch.testing.assert_close(routed.image, plain.image, atol=1e-5, rtol=0)


def test_a_region_decides_where(editor: Editor) -> None:
    image, region = picture(), torch.zeros(24, 40)
    region[:, :20] = 1
    out = editor.edit(
        image, EditRequest("dog", "lines", regions=(region,)), EditOptions(mode="routed")
    ).image
    assert torch.equal(out[:, :, 20:], image[:, :, 20:])
    assert not torch.equal(out[:, :, :20], image[:, :, :20])


def test_two_objects_in_two_styles_are_two_edits_in_one(editor: Editor) -> None:
    image = picture()
    left = torch.zeros(24, 40)
    left[:, :20] = 1
    both = editor.edit(
        image,
        EditRequest("dog", "lines", also=(("cup", "pixel-art"),), regions=(left, 1 - left)),
        EditOptions(mode="routed", steps=1),
    )
    alone = [
        editor.edit(
            image, EditRequest(name, style, regions=(region,)), EditOptions(mode="routed", steps=1)
        ).image
        for name, style, region in (("dog", "lines", left), ("cup", "pixel-art", 1 - left))
    ]
    # One step: no token of one side has seen what the other became. Away from the seam only, the
    # random codec's window spans much of the picture.
    for side, one in ((slice(0, 2), alone[0]), (slice(-2, None), alone[1])):
        other = alone[1] if one is alone[0] else alone[0]
        near, far = ((both.image - x)[..., side].abs().mean() for x in (one, other))
        assert near < 0.3 * far
    assert both.settings["object"] == ["dog", "cup"]
    assert len(both.settings["prompt"]) == 2


def test_one_sentence_with_several_clauses(editor: Editor) -> None:
    text = "make the [dog] in {lines} style and the [cup] in {pixel-art} style"
    result = editor.edit(
        picture(), EditRequest("", "", prompt=text), EditOptions(mode="routed"), want_map=True
    )
    assert result.settings["style"] == ["lines", "pixel-art"]
    assert result.region_map is not None
    assert result.region_map.shape == (6, 10)
    assert len(result.settings["attention_on_region"]) == 2
    json.dumps(result.settings)


def test_strength_zero_changes_nothing_and_half_lies_between(editor: Editor) -> None:
    image, region = picture(), (torch.ones(24, 40),)
    outs = [
        editor.edit(
            image,
            EditRequest("dog", "lines", regions=region),
            EditOptions(mode="routed", steps=1, strength=strength, lock_background=False),
        ).image
        for strength in (0.0, 0.5, 1.0)
    ]  # fmt: skip
    codec = editor.backbone.decode_latents(editor.backbone.encode_images(image[None]))[0]
    assert torch.equal(outs[0], image)
    assert (outs[1] - codec).abs().mean() < (outs[2] - codec).abs().mean()
    for refine in (False, True):
        options = EditOptions(mode="routed", steps=1, strength=0.0, refine_crop=refine)
        large = picture(96, 160)
        edit = editor.edit(large, EditRequest("dog", "lines"), options)
        assert torch.equal(edit.image, large)


def test_a_picture_does_not_depend_on_its_neighbours(editor: Editor) -> None:
    requests = [EditRequest("dog", "lines", seed=1), EditRequest("cup", "pixel-art", seed=2)]
    images = [picture(seed=1), picture(seed=2)]
    options = EditOptions(mode="routed")
    together = editor.edit_batch(images, requests, options, want_map=True)
    for image, request, result in zip(images, requests, together, strict=True):
        [alone] = editor.edit_batch([image], [request], options, want_map=True)
        torch.testing.assert_close(result.image, alone.image, atol=1e-5, rtol=0)
        torch.testing.assert_close(result.region_map, alone.region_map, atol=1e-5, rtol=0)


def test_experts_trained_for_routing_are_routed(
    tmp_path: Path, tiny_base: Path, write_experts: Callable[..., Path]
) -> None:
    base = load_base(str(tiny_base))
    folder = write_experts(tmp_path, base, routing={"branch": "base", "threshold": 0.4})
    editor = Editor(load_base(str(tiny_base)), folder)
    settings = editor.edit(picture(), EditRequest("dog", "lines")).settings
    assert (settings["mode"], settings["lock_background"]) == ("routed", True)
    assert editor.routing.threshold == 0.4
    assert (
        editor.edit(picture(), EditRequest("dog", "lines"), EditOptions(mode="plain")).settings[
            "mode"
        ]
        == "plain"
    )


def test_the_branch_may_be_the_base_or_the_expert(
    tmp_path: Path, tiny_base: Path, write_experts: Callable[..., Path]
) -> None:
    open_gate = (torch.ones(24, 40),)
    images = {}
    for branch in ("base", "expert"):
        folder = write_experts(
            tmp_path / branch, load_base(str(tiny_base)), routing={"branch": branch}
        )
        editor = Editor(load_base(str(tiny_base)), folder)
        images[branch] = editor.edit(
            picture(), EditRequest("dog", "lines", regions=open_gate)
        ).image
    bare = Editor(load_base(str(tiny_base)))
    # Without experts the style's words are its name.
    alone = bare.edit(
        picture(), EditRequest("dog", "line-art", regions=open_gate), EditOptions(mode="routed")
    ).image
    torch.testing.assert_close(images["base"], alone, atol=1e-5, rtol=0)
    assert not torch.allclose(images["expert"], alone, atol=1e-2)


def test_a_broken_routing_section_is_one_sentence(
    tmp_path: Path, tiny_base: Path, write_experts: Callable[..., Path]
) -> None:
    folder = write_experts(tmp_path, load_base(str(tiny_base)), routing={"threshold": 7})
    with pytest.raises(UserError, match=r"experts\.json: routing\.threshold"):
        Editor(load_base(str(tiny_base)), folder)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"mode": "magic"}, "routed, plain"),
        ({"mode": "routed", "strength": -0.1}, "between 0 and 1"),
        ({"mode": "plain", "strength": 0.5}, "needs mode routed"),
        ({"mode": "plain", "also": (("cup", "lines"),)}, "one object at a time"),
        ({"mode": "routed", "regions": (torch.ones(3, 3),)}, "is 3x3, but the image is 40x24"),
        ({"mode": "routed", "regions": (torch.ones(24, 40),) * 2}, "2 region maps for 1 objects"),
    ],
)
def test_mistakes(editor: Editor, options: dict[str, Any], sentence: str) -> None:
    given = {key: options[key] for key in ("also", "regions") if key in options}
    request = EditRequest("dog", "lines", **given)
    options = {key: value for key, value in options.items() if key not in given}
    with pytest.raises(UserError, match=sentence):
        editor.edit(picture(), request, EditOptions(**options))
