"""The editor: size kept, experts chosen by name, pictures equal to the stock pipeline's, maps."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from diffusers import FluxKontextPipeline
from torch import Tensor

from regionroute.attention import combine_maps, region_map
from regionroute.config.sites import MapChoice
from regionroute.data.images import resize
from regionroute.data.prompts import Prompt, build_prompt
from regionroute.diffusion.flow import draw_noise
from regionroute.diffusion.latents import pack
from regionroute.editing.editor import Editor
from regionroute.editing.request import EditOptions, EditRequest
from regionroute.errors import UserError
from regionroute.models.backbone import Backbone
from regionroute.models.bundled import bundled_experts
from regionroute.models.loading import load_base

Write = Callable[..., Path]


@pytest.fixture
def editor(tiny_backbone: Backbone, tiny_experts: Path) -> Editor:
    return Editor(tiny_backbone, tiny_experts)


@pytest.fixture
def zero_shot(tiny_backbone: Backbone) -> Editor:
    return Editor(tiny_backbone)


def picture(height: int = 24, width: int = 40, seed: int = 0) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("mode", ["plain", "routed"])
@pytest.mark.parametrize(
    "size", [(24, 40), (31, 57), (57, 31), (5, 9), (100, 64), (1, 1), (4, 64), (127, 9)]
)
def test_the_output_has_the_inputs_size(editor: Editor, size: tuple[int, int], mode: str) -> None:
    result = editor.edit(
        picture(*size), EditRequest("dog", "pixel-art"), EditOptions(steps=1, mode=mode)
    )
    assert result.image.shape == (3, *size)
    assert result.image.dtype == torch.float32
    assert 0 <= result.image.min() <= result.image.max() <= 1


def test_a_stock_pipeline_with_the_exported_expert_gives_our_picture(
    editor: Editor, stock: FluxKontextPipeline, tiny_experts: Path
) -> None:
    image = picture()  # 24x40 is what the model sees too: no resizing in either
    assert editor.backbone.fit_size(24, 40) == (24, 40)
    pictures = {}
    for name in ("pixel-art", "lines"):
        ours = editor.edit(
            image, EditRequest("dog", name, seed=4), EditOptions(steps=3, guidance=2.5)
        )
        stock.load_lora_weights(tiny_experts / name)
        theirs = stock(
            image=image[None],
            prompt=ours.prompt,
            height=24,
            width=40,
            max_area=24 * 40,
            num_inference_steps=3,
            guidance_scale=2.5,
            latents=pack(draw_noise((1, 4, 12, 20), seed=4)),
            max_sequence_length=32,
            output_type="pt",
            _auto_resize=False,
        ).images[0]
        stock.unload_lora_weights()
        torch.testing.assert_close(ours.image, theirs, atol=1e-5, rtol=0)
        pictures[name] = ours.image
    bare = Editor(load_base(editor.backbone.name))
    unedited = bare.edit(
        image, EditRequest("dog", "pixel-art", seed=4), EditOptions(steps=3, guidance=2.5)
    ).image
    # Each expert must matter, or the comparison would prove nothing.
    assert (pictures["pixel-art"] - unedited).abs().max() > 1e-2
    assert (pictures["pixel-art"] - pictures["lines"]).abs().max() > 1e-2


def test_a_batch_of_mixed_styles_is_its_single_edits(editor: Editor) -> None:
    images = [picture(seed=1), picture(seed=2), picture(seed=3)]
    requests = [
        EditRequest("dog", "pixel-art", seed=1),
        EditRequest("cup", "lines", seed=2),
        EditRequest("zebra", "pixel-art", "turn the [zebra] into {pixel-art}", seed=3),
    ]
    together = editor.edit_batch(images, requests, want_map=True)
    for image, request, result in zip(images, requests, together, strict=True):
        alone = editor.edit(
            image,
            EditRequest(request.object, request.style, prompt=request.prompt, seed=request.seed),
            want_map=True,
        )
        torch.testing.assert_close(result.image, alone.image, atol=1e-5, rtol=0)
        torch.testing.assert_close(result.region_map, alone.region_map, atol=1e-5, rtol=0)
        assert result.settings == alone.settings


def test_the_seed_alone_decides_the_noise(zero_shot: Editor) -> None:
    runs = [
        zero_shot.edit(picture(), EditRequest("dog", "line-art", seed=seed)).image
        for seed in (0, 0, 1)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_the_prompt_uses_the_styles_phrase(editor: Editor) -> None:
    result = editor.edit(picture(), EditRequest("dog", "lines"), EditOptions(steps=1))
    assert result.prompt == "make the dog in line-art style, keep other area unchanged"
    assert result.settings["style"] == "lines"
    assert (
        editor.edit(picture(), EditRequest("dog", "Line-Art"), EditOptions(steps=1)).settings[
            "style"
        ]
        == "lines"
    )


def test_settings_are_complete_and_json(
    editor: Editor, tiny_base: Path, tiny_experts: Path
) -> None:
    settings = editor.edit(picture(30, 50), EditRequest("dog", "lines", seed=6)).settings
    assert settings.pop("versions").keys() == {"regionroute", "torch", "diffusers"}
    assert json.loads(json.dumps(settings)) == {
        "prompt": "make the dog in line-art style, keep other area unchanged",
        "object": "dog",
        "style": "lines",
        "base": str(tiny_base),
        "experts": str(tiny_experts),
        "steps": 2,
        "guidance": 3.5,
        "mode": "plain",
        "lock_background": False,
        "strength": 1.0,
        "instance": "all",
        "refine_crop": False,
        "sparse": False,
        "force": False,
        "sparse_quality": "balanced",
        "seed": 6,
        "size": [30, 50],
        "model_size": [24, 40],
    }


def test_maps_are_the_mean_over_steps_and_change_no_picture(editor: Editor) -> None:
    with_map = editor.edit(
        picture(), EditRequest("dog", "pixel-art"), EditOptions(steps=2), want_map=True
    )
    without = editor.edit(picture(), EditRequest("dog", "pixel-art"), EditOptions(steps=2))
    assert without.region_map is None
    torch.testing.assert_close(with_map.image, without.image, atol=1e-6, rtol=0)
    assert with_map.region_map is not None
    assert with_map.region_map.shape == (6, 10)  # 24x40 pixels, 4 to a token
    assert 0 <= with_map.region_map.min() < with_map.region_map.max() <= 1
    one = editor.edit(
        picture(), EditRequest("dog", "pixel-art"), EditOptions(steps=1), want_map=True
    )
    assert not torch.allclose(with_map.region_map, one.region_map)


def test_the_registry_says_which_layers_make_the_map(
    tiny_backbone: Backbone, tiny_base: Path, tmp_path: Path, write_experts: Write
) -> None:
    write_experts(
        tmp_path, load_base(str(tiny_base)), map_layers=["double.1"], map_queries="context"
    )
    editor = Editor(tiny_backbone, tmp_path)
    assert editor.map_choice == MapChoice(layers=["double.1"], queries="context")
    own = editor.edit(picture(), EditRequest("dog", "pixel-art"), want_map=True)
    assert own.settings["map"] == editor.map_choice.settings()
    editor.read_maps(MapChoice(layers=["double.1.context"]))
    same = editor.edit(picture(), EditRequest("dog", "pixel-art"), want_map=True)
    assert torch.equal(own.region_map, same.region_map)  # type: ignore[arg-type]
    editor.read_maps(MapChoice())
    other = editor.edit(picture(), EditRequest("dog", "pixel-art"), want_map=True)
    assert not torch.allclose(own.region_map, other.region_map)  # type: ignore[arg-type]
    assert other.settings["map"]["layers"] == ["all"]
    assert "map" not in editor.edit(picture(), EditRequest("dog", "pixel-art")).settings


def test_a_calibrated_choice_goes_before_what_was_supervised(
    tiny_backbone: Backbone, tiny_base: Path, tmp_path: Path, write_experts: Write
) -> None:
    layers = ["double.0.context:1@object", "single.0.target:0"]
    choice = {"layers": layers, "combine": "normalised", "steps": "first"}
    write_experts(tmp_path, load_base(str(tiny_base)), map_layers=["double.0"], map=choice)
    editor = Editor(tiny_backbone, tmp_path)
    request = EditRequest("dog", "pixel-art", seed=3)
    maps = editor.site_maps([picture()], [request])
    assert [str(site.word) for site in maps] == ["object", "style"]
    expected = region_map(combine_maps(list(maps.values())))[0]
    for steps in (1, 3):  # the first step alone is read
        found = editor.edit(
            picture(),
            EditRequest("dog", "pixel-art", seed=3),
            EditOptions(steps=steps),
            want_map=True,
        )
        torch.testing.assert_close(found.region_map, expected, atol=1e-5, rtol=0)
    zero_shot = Editor(load_base(str(tiny_base)))
    zero_shot.read_maps(editor.map_choice)
    theirs = zero_shot.site_maps([picture()], [request])
    for site, bare in editor.site_maps([picture()], [request], bare=True).items():
        torch.testing.assert_close(bare, theirs[site])
        assert not torch.allclose(bare, maps[site])


def test_a_choice_makes_the_gates_of_routed_edits(editor: Editor) -> None:
    routed = EditOptions(mode="routed")
    seen = []
    for layers in (["all"], ["single.0.context:0@object", "double.1"]):
        editor.read_maps(MapChoice(layers=layers, combine="normalised"))
        [result] = editor.edit_batch([picture()], [EditRequest("dog", "lines")], routed)
        assert result.settings["map"]["layers"] == layers
        # The probability itself, whatever the shape of the map: no token can have more than all.
        [level] = result.settings["attention_on_region"]
        assert 0 < level < 32 + 2 * 60
        seen.append(result.image)
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ({"map": {"layers": ["double.9"]}}, 'experts.json: map: the model has no block "double.9"'),
        ({"map": {"layers": ["single.0:5"]}}, 'map: "single.0:5": the heads are 0 to 1'),
        ({"map": {"layers": ["no good"]}}, "experts.json: map.layers: .*form.*, calibrate again"),
        ({"map": {"layer": "all"}}, "map.layer: Extra inputs.*, calibrate again"),
        ({"map": "all"}, "experts.json: map: .*calibrate again"),
        ({"map_queries": "text"}, "experts.json: map_queries: Input should be"),
    ],
)
def test_a_broken_choice_is_one_sentence(
    tiny_backbone: Backbone,
    tiny_base: Path,
    tmp_path: Path,
    write_experts: Write,
    extra: dict[str, object],
    sentence: str,
) -> None:
    write_experts(tmp_path, load_base(str(tiny_base)), **extra)
    with pytest.raises(UserError, match=sentence) as caught:
        Editor(tiny_backbone, tmp_path)
    assert "\n" not in str(caught.value)


def test_experts_bring_the_sizes_they_were_trained_at(
    tiny_backbone: Backbone, tiny_base: Path, tmp_path: Path, write_experts: Write
) -> None:
    write_experts(tmp_path, load_base(str(tiny_base)), max_text_length=20, resolution=64)
    editor = Editor(tiny_backbone, tmp_path)
    assert editor.backbone.encode_prompts(["dog"])[0].shape[1] == 20
    assert editor.backbone.fit_size(100, 100) == (64, 64)


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_text_length", 0), ("max_text_length", 600), ("resolution", "64"), ("resolution", True)],
)
def test_senseless_sizes_are_refused(
    tiny_backbone: Backbone,
    tiny_base: Path,
    tmp_path: Path,
    write_experts: Write,
    key: str,
    value: object,
) -> None:
    write_experts(tmp_path, load_base(str(tiny_base)), **{key: value})
    with pytest.raises(UserError, match=rf"experts\.json: {key} must be"):
        Editor(tiny_backbone, tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_edits_too(
    tiny_base: Path, tiny_experts: Path, dtype: torch.dtype, editor: Editor
) -> None:
    low = Editor(load_base(str(tiny_base), dtype), tiny_experts)
    result = low.edit(picture(), EditRequest("dog", "pixel-art"), want_map=True)
    assert result.image.dtype == torch.float32
    assert result.region_map is not None
    exact = editor.edit(picture(), EditRequest("dog", "pixel-art")).image
    assert (result.image - exact).abs().mean() < 0.05


def test_a_prompt_may_come_marked_plain_or_with_its_spans(editor: Editor) -> None:
    whole = build_prompt([("dog", "pixel-art"), ("cup", "line-art")])
    second = Prompt(whole.text, whole.object_spans[1:], whole.style_spans[1:])
    requests = [
        EditRequest("cup", "lines", "the [dog] in {pixel-art}, the [cup] in {line-art}"),
        EditRequest("cup", "lines", "the [dog] in {pixel-art}, the [Cup] in {lines}"),
        EditRequest("cup", "lines", "give the cup a line-art look"),
        EditRequest("cup", "lines", second),
        EditRequest("", "", "the [cup] in {line-art}"),
    ]
    for request in requests:
        editor.check(request)
        [result] = editor.edit_batch([picture()], [request], EditOptions(steps=1))
        assert (result.settings["object"].lower(), result.settings["style"]) == ("cup", "lines")
        assert not set(result.prompt) & set("[]{}")


@pytest.mark.parametrize(
    "prompt", ["a quiet afternoon", "the [dog] in {pixel-art}", "[cup] {lines}, [dog] {pixel-art}"]
)
def test_wording_that_several_objects_would_drop_is_refused(editor: Editor, prompt: str) -> None:
    both = EditRequest("dog", "pixel-art", prompt, also=(("cup", "lines"),))
    with pytest.raises(UserError, match=r"order, \[dog\] {pixel-art}, \[cup\] {lines}"):
        editor.check(both)
    marked = dataclasses.replace(both, prompt="[Dog ] {Pixel art}, [cup] {lines}")
    editor.check(marked, EditOptions(mode="routed"))


def test_an_object_is_named_once_unless_regions_tell_where(editor: Editor) -> None:
    routed, halves = EditOptions(mode="routed"), (torch.eye(24, 40), 1 - torch.eye(24, 40))
    twice = EditRequest("bottle", "lines", also=(("The Bottle", "pixel-art"),))
    with pytest.raises(UserError, match="object 'The Bottle' is named twice"):
        editor.check(twice, routed)
    editor.check(dataclasses.replace(twice, regions=halves), routed)


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (
            EditRequest("dog", "cyberpunk"),
            "no expert for style .*known: .*--experts.*regionroute teach",
        ),
        (EditRequest("", "pixel-art"), "the object is empty"),
        (EditRequest("dog", ""), "the style is empty"),
        (EditRequest("", "", "no marks at all"), "is empty"),
        (EditRequest("cup", "pixel-art", "the [dog] in {pixel-art}"), "marks .dog. .pixel-art."),
        (EditRequest("dog", "lines", "the [dog] in {pixel-art}"), "mark that pair"),
        (EditRequest("dog", "pixel-art", "the cup in pixel-art"), "'dog' is not in it"),
        (EditRequest("dog", "pixel-art", "the dog, the dog: pixel-art"), "2 times"),
        (EditRequest("dog", "pixel-art", "the [dog in {pixel-art}"), "no partner"),
        (EditRequest("very " * 20 + "long dog", "pixel-art"), "beyond the 32 tokens"),
        (EditRequest("dog", "pixel-art", seed=-1), "seed -1"),
        (EditRequest("dog", "pixel-art", seed=2**63), "seed"),
    ],
)
def test_requests_that_cannot_be_carried_out(
    editor: Editor, request_: EditRequest, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        editor.check(request_)
    with pytest.raises(UserError, match=sentence):
        editor.edit_batch([picture()], [request_])


@pytest.mark.parametrize(
    "settings",
    [{"steps": 0}, {"steps": 1001}, {"guidance": -1.0}, {"guidance": float("nan")}],
)
def test_senseless_settings_are_refused(zero_shot: Editor, settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        zero_shot.edit(picture(), EditRequest("dog", "line-art"), EditOptions(**settings))  # type: ignore[arg-type]


def test_zero_shot_takes_any_style(zero_shot: Editor) -> None:
    result = zero_shot.edit(picture(), EditRequest("dog", "gouache"), want_map=True)
    assert result.prompt == "make the dog in gouache style, keep other area unchanged"
    assert result.settings["experts"] is None
    assert result.region_map is not None


def test_batches_of_several_sizes_are_a_mistake_of_the_caller(zero_shot: Editor) -> None:
    request = EditRequest("dog", "line-art")
    with pytest.raises(ValueError, match="one size"):
        zero_shot.edit_batch([picture(8, 8), picture(8, 12)], [request, request])
    with pytest.raises(ValueError, match="1 images and 0 requests"):
        zero_shot.edit_batch([picture()], [])


def test_experts_of_another_base_are_refused(tiny_plain: Backbone, tiny_experts: Path) -> None:
    with pytest.raises(UserError, match="trained on base"):
        Editor(tiny_plain, tiny_experts)


def test_a_base_without_experts_is_one_sentence(tiny_base: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.symlink_to(tiny_base)
    with pytest.raises(UserError, match=r"comes without experts.*--zero-shot"):
        bundled_experts(str(base))
    with pytest.raises(UserError, match="comes without experts"):
        bundled_experts("someone/on-the-hub")


def test_resizing_is_antialiased_and_free_at_equal_size() -> None:
    images = torch.rand(1, 3, 8, 8)
    assert resize(images, (8, 8)) is images
    checker = torch.zeros(1, 3, 32, 32)
    checker[..., ::2, ::2] = checker[..., 1::2, 1::2] = 1
    assert (resize(checker, (8, 8)) - 0.5).abs().max() < 0.1


def test_maps_read_from_the_mirror_image_too_are_mirrored_with_the_picture(editor: Editor) -> None:
    def maps(image: Tensor) -> Tensor:
        result = editor.edit(
            image, EditRequest("dog", "pixel-art"), EditOptions(mode="routed"), want_map=True
        )
        assert result.region_map is not None
        return result.region_map

    before, image = editor.routing, picture()
    try:
        assert (maps(image.flip(-1)) - maps(image).flip(-1)).abs().max() > 1e-3
        editor.routing = before.model_copy(update={"mirror": True})
        torch.testing.assert_close(maps(image.flip(-1)), maps(image).flip(-1), atol=1e-5, rtol=0)
    finally:
        editor.routing = before


@pytest.fixture
def presence(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Presence of words, as a base with a word-aligned image encoder would give it."""
    values: dict[str, float] = {}

    def known(self: Backbone, images: Tensor, phrases: Sequence[Sequence[str]]) -> Tensor:
        assert images.shape[:2] == (len(phrases), 3)
        assert images.min() >= 0
        assert images.max() <= 1
        return torch.tensor([[values[phrase] for phrase in row] for row in phrases])

    monkeypatch.setattr(Backbone, "presence", known)
    return values


def test_an_absent_object_leaves_the_image_alone_unless_forced(
    editor: Editor, presence: dict[str, float]
) -> None:
    image, request = picture(32, 32), EditRequest("dog", "pixel-art")
    routed = EditOptions(steps=1, mode="routed", lock_background=False)
    presence["dog"] = 0.3
    usual = editor.edit(image, request, routed)
    assert usual.settings["presence"] == [0.3]
    editor.routing = editor.routing.model_copy(update={"presence": 0.31})

    kept = editor.edit(image, request, routed)
    assert torch.equal(kept.image, image)
    assert kept.settings["left_unchanged"] == ["dog"]
    assert '"dog" was not found in the image' in kept.settings["warnings"][0]
    assert "--force" in kept.settings["warnings"][0]
    locked = editor.edit(image, request, EditOptions(steps=1, mode="routed"))
    assert torch.equal(locked.image, image)

    forced = editor.edit(image, request, dataclasses.replace(routed, force=True))
    assert torch.equal(forced.image, usual.image)
    assert not {"left_unchanged", "presence"} & set(forced.settings)


def test_of_a_batch_the_image_without_its_object_stays(
    editor: Editor, presence: dict[str, float]
) -> None:
    image = picture(32, 32)
    presence |= {"dog": 0.9, "cup": 0.1}
    editor.routing = editor.routing.model_copy(update={"presence": 0.5})
    requests = [EditRequest(word, "pixel-art") for word in ("cup", "dog")]
    options = EditOptions(steps=1, mode="routed", lock_background=False)
    left, changed = editor.edit_batch([image, image], requests, options)
    assert torch.equal(left.image, image)
    assert not torch.equal(changed.image, image)


def test_of_two_objects_the_absent_one_alone_is_left(
    editor: Editor, presence: dict[str, float]
) -> None:
    image = picture(32, 32)
    presence |= {"dog": 0.9, "cup": 0.1}
    editor.routing = editor.routing.model_copy(update={"presence": 0.5})
    routed = EditOptions(steps=1, mode="routed", lock_background=False)
    both = EditRequest("dog", "pixel-art", also=(("cup", "line-art"),))

    result = editor.edit(image, both, routed, want_map=True)
    assert result.settings["left_unchanged"] == ["cup"]
    alone = editor.edit(image, EditRequest("dog", "pixel-art"), routed, want_map=True)
    assert torch.allclose(result.image, alone.image, atol=1e-4)
    assert torch.allclose(result.region_map, alone.region_map, atol=1e-4)
    presence["dog"] = 0.2
    neither = editor.edit(image, both, routed, want_map=True)
    assert torch.equal(neither.image, image)
    assert neither.region_map.max() > 0.5  # where it looked


def test_presence_is_asked_by_the_words_of_the_template(
    editor: Editor, presence: dict[str, float]
) -> None:
    presence |= {"teddy bear": 0.3, "a -": 0.4}
    named = EditRequest("The  Teddy-bear", "pixel-art")
    marked, bare = (
        EditRequest("", "", f"make [{phrase}] in {{pixel-art}} style")
        for phrase in ("a Teddy-bear", "a -")
    )
    for request, value in ((named, 0.3), (marked, 0.3), (bare, 0.4)):
        edit = editor.edit(picture(32, 32), request, EditOptions(1, mode="routed"))
        assert edit.settings["presence"] == [value]


def test_a_base_without_word_aligned_features_cannot_tell(editor: Editor) -> None:
    assert editor.backbone.presence(torch.zeros(1, 3, 32, 32), [["dog"]]) is None
