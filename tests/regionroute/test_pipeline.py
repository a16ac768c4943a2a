"""The Python API: the README's calls, inputs and outputs of every kind, and the command's bytes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import regionroute
from regionroute import RegionRoutePipeline
from regionroute.adapters import read_registry
from regionroute.cli import main as cli
from regionroute.data.images import from_pil, read_soft_mask, to_pil
from regionroute.errors import UserError
from regionroute.models import loading
from regionroute.models.bundled import bundled_experts


@pytest.fixture(scope="module")
def pipe() -> RegionRoutePipeline:
    return RegionRoutePipeline.from_pretrained("nano-photos")


@pytest.fixture
def tiny(tiny_base: Path, tiny_experts: Path) -> RegionRoutePipeline:
    """Small, random and quick; experts are plain by default."""
    return RegionRoutePipeline.from_pretrained(tiny_base, experts=tiny_experts)


def photo(height: int = 96, width: int = 128, seed: int = 0) -> Image.Image:
    """A soft blob on a soft background."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    inside = np.exp(-(((y - height / 2) / 24) ** 2) - ((x - width / 2) / 30) ** 2)[..., None]
    colours = rng.uniform(60, 200, (2, 3))
    values = (
        inside * colours[0] + (1 - inside) * colours[1] + rng.uniform(0, 20, (height, width, 3))
    )
    return Image.fromarray(values.astype(np.uint8))


def tensor(image: Image.Image) -> Tensor:
    return from_pil(image)


def test_the_readme_block(pipe: RegionRoutePipeline, tmp_path: Path) -> None:
    image, steps = photo(), []
    pipe.load_experts(pipe.editor.experts_dir or "auto")
    pipe.to("cpu")
    out = pipe(
        image, object="cat", style="starry-night", generator=torch.Generator().manual_seed(0)
    )
    assert isinstance(out.images[0], Image.Image)
    assert out.images[0].size == image.size
    assert isinstance(out.region_maps[0], Image.Image)
    assert out.region_maps[0].size == image.size
    assert out.metadata[0]["style"] == "starry-night"
    json.dumps(out.metadata)

    several = pipe(image, object=["dog", "cup"], style=["woodcut", "ukiyo-e"])
    assert several.metadata[0]["object"] == ["dog", "cup"]
    assert several.metadata[0]["style"] == ["woodcut", "ukiyo-e"]

    mask = np.zeros((96, 128), bool)
    mask[20:60, 30:90] = True
    a, b = photo(seed=1), photo(seed=2)
    out = pipe(
        [a, b], object="cat", style="woodcut", strength=0.7, region_mask=mask,
        callback_on_step_end=lambda pipe, step, time, tensors: steps.append((step, float(time))),
    )  # fmt: skip
    assert len(out.images) == 2
    assert [step for step, _ in steps] == [*range(out.metadata[0]["steps"])]
    assert steps[0][1] == 1000
    for before, after in zip((a, b), out.images, strict=True):
        changed = (np.asarray(before) != np.asarray(after)).any(2)
        assert changed[mask].mean() > 0.5
        assert not changed[~mask].any()


@pytest.mark.parametrize(
    ("call", "flags"),
    [
        (
            {"object": "cat", "style": "starry-night"},
            ["--object", "cat", "--style", "starry-night"],
        ),
        (
            {"object": ["dog", "cup"], "style": ["woodcut", "pixel-art"], "strength": 0.6},
            [
                *[
                    "--object",
                    "dog",
                    "--style",
                    "woodcut",
                    "--object",
                    "cup",
                    "--style",
                    "pixel-art",
                    "--strength",
                    ".6",
                ]
            ],
        ),
        (
            {"object": "cat", "style": "woodcut", "mode": "plain", "num_inference_steps": 2},
            [*["--object", "cat", "--style", "woodcut", "--mode", "plain", "--steps", "2"]],
        ),
        (
            {"prompt": "turn the [cat] into {woodcut}", "refine_crop": False},
            ["--prompt", "turn the [cat] into {woodcut}", "--no-refine-crop"],
        ),
    ],
)
def test_the_command_gives_the_same_bytes(
    pipe: RegionRoutePipeline, tmp_path: Path, call: dict[str, Any], flags: list[str]
) -> None:
    # Larger than the model's resolution, so that resizing and refinement take part.
    file, out, map_file = tmp_path / "in.png", tmp_path / "out.png", tmp_path / "map.png"
    photo(190, 260).save(file)
    arguments = [file, *flags, "--seed", 5, "--out", out, "--map", map_file]
    assert cli.main(["edit", *map(str, arguments)]) == 0
    with Image.open(file) as image:
        edit = pipe(image, **call, generator=torch.Generator().manual_seed(5))
    for ours, theirs in ((edit.images[0], out), (edit.region_maps[0], map_file)):
        with Image.open(theirs) as written:
            assert isinstance(ours, Image.Image)
            assert ours.mode == written.mode
            assert ours.tobytes() == written.tobytes()
    sidecar = json.loads(out.with_suffix(".json").read_text())
    sidecar["map"] = {k: v for k, v in sidecar["map"].items() if k not in ("file", "grid")}
    assert sidecar == {"image": str(file)} | json.loads(json.dumps(edit.metadata[0]))


def test_images_may_be_pil_arrays_or_tensors(tiny: RegionRoutePipeline) -> None:
    image = photo(24, 40)
    array = np.asarray(image)
    forms: list[Any] = [
        image,
        array,
        array.astype(np.float32) / 255,
        tensor(image),
        torch.from_numpy(array.copy()).permute(2, 0, 1),
        tensor(image)[None],
        array[None],
        [image],
    ]
    edits = [tiny(form, "dog", "lines", output_type="pt").images for form in forms]
    assert all(len(images) == 1 for images in edits)
    for [other] in edits[1:]:
        torch.testing.assert_close(other, edits[0][0], rtol=0, atol=1e-6)


def test_transparency_is_kept_as_the_command_keeps_it(
    tiny: RegionRoutePipeline, tiny_base: Path, tiny_experts: Path, tmp_path: Path
) -> None:
    array = np.dstack([np.asarray(photo(24, 40)), np.full((24, 40), 255, np.uint8)])
    array[:4, :, 3], array[4:8, :, 3] = 0, 90  # hidden colours, and half transparent ones
    sticker, file, out = Image.fromarray(array), tmp_path / "in.png", tmp_path / "out.png"
    sticker.save(file)
    flags = ["--base", tiny_base, "--experts", tiny_experts, "--object", "dog", "--style", "lines"]
    assert cli.main(["edit", *map(str, [file, *flags, "--out", out])]) == 0
    written = np.asarray(Image.open(out))
    assert (written[..., 3] == array[..., 3]).all()
    assert (written[:4, :, :3] == array[:4, :, :3]).all()
    forms: list[Any] = [sticker, array, torch.from_numpy(array).permute(2, 0, 1) / 255]
    for form in forms:
        edited = tiny(form, "dog", "lines", output_type="np").images[0]
        assert edited.shape == (24, 40, 4)  # type: ignore[union-attr]
        assert np.abs(np.round(edited * 255) - written).max() <= 1  # type: ignore[operator]
    [edited] = tiny(sticker, "dog", "lines").images
    assert edited.mode == "RGBA"  # type: ignore[union-attr]
    assert edited.tobytes() == Image.open(out).tobytes()  # type: ignore[union-attr]
    opaque = Image.fromarray(np.asarray(photo(24, 40))).convert("RGBA")
    assert tiny(opaque, "dog", "lines").images[0].mode == "RGB"  # type: ignore[union-attr]


def test_images_and_maps_come_as_asked(tiny: RegionRoutePipeline) -> None:
    found = {
        kind: tiny(photo(24, 40), "dog", "lines", output_type=kind)  # type: ignore[arg-type]
        for kind in ("pil", "np", "pt")
    }
    image, region_map = found["pt"].images[0], found["pt"].region_maps[0]
    assert isinstance(image, Tensor)
    assert isinstance(region_map, Tensor)
    assert image.shape == (3, 24, 40)
    assert region_map.shape == (6, 10)  # the token grid
    assert np.array_equal(found["np"].images[0], image.permute(1, 2, 0).numpy())
    assert np.array_equal(found["np"].region_maps[0], region_map.numpy())  # type: ignore[arg-type]
    assert found["pil"].images[0].tobytes() == to_pil(image).tobytes()  # type: ignore[union-attr]
    bare = tiny(photo(24, 40), "dog", "lines", output_region_maps=False)
    assert bare.region_maps == [None]


def test_a_list_of_mixed_sizes_keeps_its_order(tiny: RegionRoutePipeline) -> None:
    images = [photo(24, 40, 1), photo(40, 24, 2), photo(24, 40, 3), photo(30, 30, 4)]
    together = tiny(images, "dog", "lines", output_type="pt", batch_size=2)
    for image, edited, metadata in zip(images, together.images, together.metadata, strict=True):
        alone = tiny(image, "dog", "lines", output_type="pt").images[0]
        torch.testing.assert_close(edited, alone, rtol=0, atol=1e-5)
        assert metadata["size"] == [image.height, image.width]


def test_a_generator_is_its_seed_once_and_then_moves_on(tiny: RegionRoutePipeline) -> None:
    def edit(**options: Any) -> tuple[list[Tensor], list[int]]:
        images = options.pop("images", photo(24, 40))
        out = tiny(images, "dog", "lines", output_type="pt", **options)
        return out.images, [metadata["seed"] for metadata in out.metadata]  # type: ignore[return-value]

    generator = torch.Generator().manual_seed(7)
    [first], [seed] = edit(generator=generator)
    assert seed == 7
    assert torch.equal(first, edit(seed=7)[0][0])
    [second], [drawn] = edit(generator=generator)
    assert not torch.equal(first, second)
    assert torch.equal(second, edit(seed=drawn)[0][0])  # any edit can be repeated by its seed
    pair = [photo(24, 40)] * 2
    (one, two), seeds = edit(images=pair, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(one, first, rtol=0, atol=1e-5)
    torch.testing.assert_close(two, second, rtol=0, atol=1e-5)
    assert seeds == [7, drawn]
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 7)]
    assert edit(images=pair, generator=generators)[1] == [3, 7]
    assert edit(images=pair, seed=[3, 7])[1] == [3, 7]
    assert edit(images=pair)[1] == [0, 0]


def test_masks_may_be_of_any_kind(tiny: RegionRoutePipeline) -> None:
    inside = np.zeros((24, 40), bool)
    inside[:, :20] = True
    grey = Image.fromarray(inside.astype(np.uint8) * 255)
    forms: list[Any] = [
        inside,
        inside.astype(np.uint8),
        inside.astype(np.uint8) * 255,
        inside.astype(np.float32),
        torch.from_numpy(inside),
        grey,
        grey.convert("RGB"),
        [grey],
    ]
    before = np.asarray(photo(24, 40))
    for form in forms:
        out = tiny(photo(24, 40), "dog", "lines", region_mask=form, mode="routed")
        changed = (np.asarray(out.images[0]) != before).any(2)
        assert changed[inside].mean() > 0.5
        assert not changed[~inside].any()


def test_faint_masks_are_refused_as_files_are(tiny: RegionRoutePipeline, tmp_path: Path) -> None:
    grey = np.full((24, 40), 12, np.uint8)
    refusal = "brightest pixel is 12 of 255, such a mask selects nothing"
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "mask.png")
    with pytest.raises(UserError, match=refusal):
        read_soft_mask(tmp_path / "mask.png")
    share = grey.astype(np.float32) / 255
    for form in (Image.fromarray(share), grey, share, torch.from_numpy(share)):
        with pytest.raises(UserError, match=f"region_mask: the {refusal}"):
            tiny(photo(24, 40), "dog", "lines", region_mask=form, mode="routed")


@pytest.mark.parametrize("mode", ["plain", "routed"])
def test_an_interrupted_call_stops_and_the_next_one_does_not(
    tiny: RegionRoutePipeline, mode: Any
) -> None:
    seen: list[int] = []

    def stop(
        pipe: RegionRoutePipeline, step: int, time: Tensor, tensors: dict[str, Tensor]
    ) -> None:
        seen.append(step)
        pipe._interrupt = step == 1

    images = [photo(24, 40), photo(40, 24)]
    whole = tiny(images, "dog", "lines", mode=mode, num_inference_steps=4)
    out = tiny(images, "dog", "lines", mode=mode, num_inference_steps=4, callback_on_step_end=stop)
    assert seen == [0, 1]
    assert [metadata.get("interrupted") for metadata in out.metadata] == [True, True]
    assert out.images[0].tobytes() != whole.images[0].tobytes()  # type: ignore[union-attr]
    assert out.images[1].tobytes() == images[1].tobytes()  # type: ignore[union-attr]
    again = tiny(images, "dog", "lines", mode=mode, num_inference_steps=4)
    assert "interrupted" not in again.metadata[0]
    assert again.images[0].tobytes() == whole.images[0].tobytes()  # type: ignore[union-attr]


def test_a_callback_may_raise_and_may_change_latents(tiny: RegionRoutePipeline) -> None:
    def fail(*arguments: object) -> None:
        raise KeyError("mine")

    before = tiny(photo(24, 40), "dog", "lines", mode="routed", output_type="pt").images[0]
    with pytest.raises(KeyError, match="mine"):
        tiny(photo(24, 40), "dog", "lines", mode="routed", callback_on_step_end=fail)
    after = tiny(photo(24, 40), "dog", "lines", mode="routed", output_type="pt").images[0]
    assert torch.equal(after, before)  # type: ignore[arg-type]

    def zero(
        pipe: object, step: int, time: Tensor, tensors: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        return {"latents": torch.zeros_like(tensors["latents"])}

    changed = tiny(
        photo(24, 40), "dog", "lines", mode="plain", output_type="pt", callback_on_step_end=zero
    ).images[0]
    blank = tiny.backbone.decode_latents(torch.zeros(1, 4, 12, 20))[0]
    torch.testing.assert_close(changed, blank, rtol=0, atol=1e-5)


def test_experts_come_and_go(
    tiny: RegionRoutePipeline,
    tiny_base: Path,
    tiny_experts: Path,
    tmp_path: Path,
    write_experts: Callable[..., Path],
) -> None:
    def edit(pipe: RegionRoutePipeline, style: str = "line-art") -> Tensor:
        image = pipe(photo(24, 40), "dog", style, output_type="pt").images[0]
        assert isinstance(image, Tensor)
        return image

    bare = RegionRoutePipeline.from_pretrained(tiny_base, experts=None)
    assert tiny.styles == ["pixel-art", "lines"]
    assert bare.styles == []
    with_experts = edit(tiny)
    tiny.unload_experts()
    assert torch.equal(edit(tiny), edit(bare))
    assert edit(tiny, "gouache").shape == (3, 24, 40)  # zero-shot takes any style
    assert not torch.equal(edit(tiny), with_experts)
    tiny.load_experts(tiny_experts)
    assert torch.equal(edit(tiny), with_experts)
    other = write_experts(tmp_path, loading.load_base(str(tiny_base)), resolution=16)
    tiny.load_experts(other)
    assert tiny.backbone.settings.resolution == 16
    broken = tmp_path / "broken"
    broken.mkdir()
    with pytest.raises(UserError, match=r"no experts\.json"):
        tiny.load_experts(broken)
    with pytest.raises(UserError, match=r"unload_experts\(\) leaves the base alone"):
        tiny.load_experts(None)  # type: ignore[arg-type]
    assert tiny.editor.experts_dir == other  # still there
    shutil.copytree(other, broken, dirs_exist_ok=True)
    next(broken.rglob("*.safetensors")).write_bytes(b"")
    with pytest.raises(UserError, match="broken"):
        tiny.load_experts(broken)
    assert torch.equal(edit(tiny), edit(bare))  # and nothing of the former is left


def test_bundled_experts_follow_the_kind_of_call() -> None:
    pipe = RegionRoutePipeline.from_pretrained("nano")
    calls: list[dict[str, Any]] = [
        {"style": "pixel-art"},
        {"style_image": photo(64, 64, 3)},
        {"style": "pixel-art"},
    ]
    used, named = [], pipe.styles
    for call in calls:
        used.append(pipe(photo(64, 64), "circle", **call).metadata[0]["experts"])
        assert pipe.styles == named  # they can be named, whichever experts are loaded
    assert [Path(folder).name for folder in used] == ["experts", "experts_by_example", "experts"]
    pipe.load_experts(bundled_experts("nano"))  # chosen by the user: kept
    with pytest.raises(UserError, match="chosen by the name of a style"):
        pipe(photo(64, 64), "circle", style_image=photo(64, 64, 3))


def test_experts_load_by_the_name_that_metadata_gives_them() -> None:
    by_example = bundled_experts("nano", by_example=True)
    pipe = RegionRoutePipeline.from_pretrained(experts=by_example)
    edit: dict[str, Any] = {"object": "circle", "style_image": photo(64, 64, 3), "seed": 2}
    first = pipe(photo(64, 64), **edit)
    name = first.metadata[0]["experts"]
    assert name == "nano/experts_by_example"
    again = RegionRoutePipeline.from_pretrained(experts=name)
    second = again(photo(64, 64), **edit)
    assert second.images[0].tobytes() == first.images[0].tobytes()
    assert second.metadata[0]["experts"] == name
    again.load_experts("nano/experts")
    assert again.editor.experts_dir == bundled_experts("nano")
    assert again.styles == read_registry(bundled_experts("nano")).style_names
    again.load_experts("by_example")
    assert again.styles == read_registry(by_example).trained_styles
    again(photo(64, 64), object="circle", style=again.styles[0])
    assert again.editor.experts_dir == by_example
    with pytest.raises(UserError, match=r"nano/others: no experts\.json"):
        again.load_experts("nano/others")


def test_components_device_and_dtype(tiny: RegionRoutePipeline) -> None:
    assert set(tiny.components) == {
        "transformer", "vae", "scheduler", "tokenizer", "tokenizer_2", "text_encoder",
        "text_encoder_2",
    }  # fmt: skip
    assert tiny.components["vae"] is tiny.backbone.vae
    assert tiny.device == torch.device("cpu")
    assert tiny.dtype == torch.float32
    assert tiny.to("cpu") is tiny
    with pytest.raises(UserError, match="from_pretrained"):
        tiny.to(torch.bfloat16)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="not usable here"):
        tiny.to("cuda:99")


def test_a_vae_without_tiles_is_one_sentence(
    pipe: RegionRoutePipeline, tiny: RegionRoutePipeline
) -> None:
    with pytest.raises(UserError, match=r"nano-photos: its VAE \(PatchCodec\) does not"):
        pipe.enable_vae_tiling()
    tiny.enable_vae_tiling()
    assert tiny.backbone.vae.use_tiling
    assert tiny(photo(24, 40), "dog", "lines").images


def test_offloading_moves_each_network_only_for_its_stage(
    tiny: RegionRoutePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tiny(photo(24, 40), "dog", "lines", mode="routed", output_type="pt").images[0]
    tiny.enable_model_cpu_offload("cpu")
    names = {id(module): name for name, module in tiny.components.items()}
    here: set[str] = set()
    resident: dict[str, set[str]] = {}
    original = torch.nn.Module.to

    def to(self: torch.nn.Module, device: Any, *rest: Any, **more: Any) -> torch.nn.Module:
        name = names.get(id(self))
        if name:  # the device is given as a torch.device, the CPU of the others as a text
            (here.discard if device == "cpu" and isinstance(device, str) else here.add)(name)
        return original(self, device, *rest, **more)

    for name in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        module = tiny.components[name]
        monkeypatch.setattr(type(module), "to", to)
        original_call = "encode" if name == "vae" else "forward"
        call = getattr(module, original_call)

        def spy(*a: Any, _call: Any = call, _name: str = name, **k: Any) -> Any:
            resident[_name] = set(here)
            return _call(*a, **k)

        monkeypatch.setattr(module, original_call, spy)
    got = tiny(photo(24, 40), "dog", "lines", mode="routed", output_type="pt").images[0]
    assert torch.equal(got, expected)  # type: ignore[arg-type]
    text = {"text_encoder", "text_encoder_2"}
    assert resident == {
        "transformer": {"transformer"}, "vae": {"vae"}, "text_encoder": text,
        "text_encoder_2": text,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ({"image": "photo.png"}, "image: must be a PIL image.*PIL.Image.open"),
        ({"image": []}, "image: the list is empty"),
        ({"image": np.zeros((3, 24, 40), np.float32)}, r"must have the shape \[H,W,3\]"),
        ({"image": torch.zeros(24, 40, 3)}, r"must have the shape \[3,H,W\]"),
        ({"image": torch.full((3, 24, 40), -1.0)}, r"must be in \[0,1\], got \[-1, -1\]"),
        ({"image": torch.full((3, 24, 40), torch.nan)}, "not finite"),
        ({"image": np.zeros((24, 40, 3), np.int64)}, "uint8 or float"),
        ({"style": ["lines", "lines"]}, "1 objects and 2 styles"),
        ({"object": ["dog", ""]}, "the object is empty"),
        ({"style": "", "style_image": photo(20, 20)}, "chosen by the name of a style"),
        ({"style_image": photo(20, 20)}, "style or style_image, not both"),
        ({"style": "cubist"}, 'no expert for style "cubist"'),
        ({"region_mask": np.ones((3, 24, 40), bool)}, r"a mask must have the shape \[H,W\]"),
        ({"region_mask": np.ones((24, 41), bool), "mode": "routed"}, "is 41x24, but the image"),
        ({"region_mask": np.zeros((24, 40), bool), "mode": "routed"}, "the mask is empty"),
        ({"region_mask": Image.new("L", (40, 24)), "mode": "routed"}, "the mask is empty"),
        ({"region_mask": "mask.png"}, "region_mask: must be a PIL image"),
        ({"seed": 1, "generator": torch.Generator()}, "generator or seed, not both"),
        ({"seed": [1, 2]}, "seed: got 2 for 1 images"),
        ({"generator": [torch.Generator()] * 2}, "generator: got 2 for 1 images"),
        ({"seed": -1}, "seed -1: must be between"),
        ({"output_type": "latent"}, "output_type 'latent': must be one of pil, np, pt"),
        ({"batch_size": 0}, "batch_size 0: must be at least 1"),
        ({"num_inference_steps": 0}, "steps 0: must be a whole number"),
        ({"num_inference_steps": 2.5}, "steps 2.5: must be a whole number"),
        ({"guidance_scale": "x"}, "guidance 'x': must be a finite number"),
        ({"mode": "plain", "strength": 0.5}, "strength below 1 needs mode routed"),
    ],
)
def test_a_bad_argument_is_one_sentence(
    tiny: RegionRoutePipeline, call: dict[str, Any], sentence: str
) -> None:
    arguments = {"image": photo(24, 40), "object": "dog", "style": "lines"} | call
    with pytest.raises(UserError, match=sentence) as caught:
        tiny(**arguments)
    assert "\n" not in str(caught.value)


def test_the_base_of_the_experts_is_the_default(tiny_base: Path, tiny_experts: Path) -> None:
    assert RegionRoutePipeline.from_pretrained(experts=tiny_experts).backbone.name == str(tiny_base)
    with pytest.raises(UserError, match=r"no experts\.json"):
        RegionRoutePipeline.from_pretrained("nano", experts=tiny_base)


def test_importing_the_package_imports_nothing_heavy() -> None:
    script = """
import sys
import regionroute
assert not {"torch", "diffusers", "transformers", "numpy"} & set(sys.modules)
assert regionroute.__version__
assert {"RegionRoutePipeline", "EditOutput", "load_manifest"} <= set(dir(regionroute))
try:
    regionroute.nothing
except AttributeError as error:
    assert "nothing" in str(error)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert sorted(regionroute.__all__) == [
        "EditOutput", "RegionRoutePipeline", "__version__", "load_manifest",
    ]  # fmt: skip
    assert all(getattr(regionroute, name) for name in regionroute.__all__)


def test_a_manifest_is_a_sequence(tiny_manifest: Path) -> None:
    manifest = regionroute.load_manifest(tiny_manifest)
    assert len(manifest) == 4
    assert [sample.id for sample in manifest] == [f"pair-{i}" for i in range(4)]
    assert manifest[1].id == "pair-1"
    assert [sample.id for sample in manifest[1:3]] == ["pair-1", "pair-2"]
    assert [sample.id for sample in manifest.split("val")] == ["pair-3"]
    assert manifest.split("val").context(manifest[3]).shape == (3, 64, 64)
    with pytest.raises(UserError, match=r"no sample of split 'test' \(splits: train, val\)"):
        manifest.split("test")
