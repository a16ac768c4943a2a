"""Nodes of the ComfyUI pack: the pipeline's pixels, ComfyUI's shapes, progress and interruption."""

import inspect
import json
import subprocess
import sys
import types

import pytest
import torch

from regionroute.adapters import parse_blend, read_registry
from regionroute.adapters.files.formats import read_blend, to_original, write_lora
from regionroute.attention import dispatch
from regionroute.errors import UserError
from regionroute.models.bundled import bundled_experts

SIZE = (64, 64)


def images(count=1, channels=3):
    """IMAGE [B,H,W,C]: a bright square on a soft background."""
    generator = torch.Generator().manual_seed(3)
    values = torch.rand(count, *SIZE, channels, generator=generator) * 0.1 + 0.3
    values[:, 20:44, 20:44, 0] = 0.9
    return values


def run(node, *args, **kwargs):
    return node.execute(*args, **kwargs).args


def tensors(image):
    return image.movedim(-1, 1)


@pytest.fixture
def comfy(monkeypatch):
    """What the pack uses of ComfyUI's package `comfy`; remembers what it was asked."""
    asked = types.SimpleNamespace(updates=[], totals=[], loaded=[], interrupt_after=None)

    class Interrupted(BaseException):
        """ComfyUI's is no Exception either."""

    class ProgressBar:
        def __init__(self, total):
            asked.totals.append(total)

        def update(self, value):
            asked.updates.append(value)

    def check():
        if asked.interrupt_after is not None and len(asked.updates) >= asked.interrupt_after:
            raise Interrupted

    def load(model, clip, lora, strength, strength_clip):
        asked.loaded.append((lora, strength, clip, strength_clip))
        return ("patched", model), None

    def keys(model, found):
        return found | {name: f"{name}.weight" for name in model}

    def attribute(model, path):
        return model[path.removesuffix(".weight")]

    modules = {
        "utils": {"ProgressBar": ProgressBar, "get_attr": attribute},
        "model_management": {
            "throw_exception_if_processing_interrupted": check,
            "get_torch_device": lambda: torch.device("cpu"),
        },
        "lora": {"model_lora_keys_unet": keys},
        "sd": {"load_lora_for_models": load},
    }
    monkeypatch.setitem(sys.modules, "comfy", types.ModuleType("comfy"))
    for name, functions in modules.items():
        module = types.ModuleType(f"comfy.{name}")
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, f"comfy.{name}", module)
    asked.Interrupted = Interrupted
    return asked


def test_the_pack_imports_without_comfyui_and_imports_no_pipeline(script):
    code = (
        f"import sys; sys.path.append({str(script.PACK)!r}); sys.modules['comfy_api'] = None;"
        "import make_workflows as script; print(len(script.load_pack().NODES));"
        "assert not {'diffusers', 'regionroute.pipeline', 'eval'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["6"]


def test_schemas_and_execute_agree(nodes):
    assert sorted(nodes) == [
        "RegionRouteEdit", "RegionRouteEditByImage", "RegionRouteEditMask",
        "RegionRouteExpertLoRA", "RegionRouteLoad", "RegionRouteScore",
    ]  # fmt: skip
    for node in nodes.values():
        schema = node.GET_SCHEMA()
        ids = [socket.id for socket in schema.inputs]
        assert len(ids) == len(set(ids))
        taken = inspect.signature(node.execute).parameters
        named = {name for name, one in taken.items() if one.kind is not one.VAR_KEYWORD}
        assert named <= set(ids)
        assert named == set(ids) or len(named) < len(taken)
        assert schema.display_name.startswith("RegionRoute: ")
        assert schema.description


def test_edits_are_the_pipelines(nodes, pipe):
    image = images(2)
    edited, mask, settings = run(
        nodes["RegionRouteEdit"], pipe, image, "circle: pixel-art\n\nstar: line-art\n", seed=3
    )
    assert edited.shape == image.shape
    assert edited.dtype == torch.float32
    assert mask.shape == (2, *SIZE)
    assert 0 <= mask.min() < mask.max() <= 1
    for row, facts in enumerate(json.loads(settings)):
        alone = pipe(
            tensors(image)[row], ["circle", "star"], ["pixel-art", "line-art"], seed=3,
            output_type="pt",
        )  # fmt: skip
        torch.testing.assert_close(tensors(edited)[row], alone.images[0], rtol=0, atol=1e-5)
        assert facts["style"] == ["pixel-art", "line-art"]
        unchanged = (edited[row] == image[row]).all(-1)
        assert (mask[row][~unchanged] > 0).all()


def test_every_setting_reaches_the_pipeline(nodes, pipe):
    calls = {
        "steps": (3, "steps", 3),
        "guidance": (2.0, "guidance", 2.0),
        "mode": ("plain", "mode", "plain"),
        "lock_background": ("off", "lock_background", False),
        "refine_crop": ("on", "refine_crop", True),
        "sparse": ("on", "sparse", True),
        "sparse_quality": ("high", "sparse_quality", "high"),
        "instance": ("largest", "instance", "largest"),
        "strength": (0.5, "strength", 0.5),
    }
    for name, (value, key, expected) in calls.items():
        out = run(nodes["RegionRouteEdit"], pipe, images(), "circle: pixel-art", **{name: value})
        assert json.loads(out[2])[0][key] == expected, name
    marked = run(nodes["RegionRouteEdit"], pipe, images(), "", "turn the [gem] into {line-art}")
    assert json.loads(marked[2])[0]["prompt"] == "turn the gem into line-art"


@pytest.mark.parametrize("rows", ["circle", "circle:", ": pixel-art", "a: line-art\nstar"])
def test_rows_without_both_words_are_refused(nodes, pipe, rows):
    with pytest.raises(UserError, match='write one "object: style" a line'):
        run(nodes["RegionRouteEdit"], pipe, images(), rows)


def test_transparency_is_kept_and_grey_and_half_precision_are_taken(nodes, pipe):
    image = images(2, 4)
    image[..., 3] = 1
    image[0, :8, :, 3] = 0
    edited = run(nodes["RegionRouteEdit"], pipe, image, "circle: pixel-art")[0]
    assert edited.shape == image.shape  # also of the opaque one
    assert torch.equal(edited[..., 3], image[..., 3])
    assert torch.equal(edited[0, :8], image[0, :8])
    odd = (images(1, 1) * 1.2 - 0.1).half()  # out of range, as upscalers leave it
    assert run(nodes["RegionRouteEdit"], pipe, odd, "circle: pixel-art")[0].shape == (1, *SIZE, 3)


def test_masks_of_any_size_select_what_changes(nodes, pipe):
    node, image = nodes["RegionRouteEditMask"], images(2)
    masks = torch.zeros(2, 32, 32)
    masks[0, :, :16], masks[1, :, 16:] = 1, 1
    edited, region, settings = run(
        node, pipe, image, masks, "circle", "pixel-art", refine_crop="off"
    )
    changed = (edited != image).any(-1)
    assert changed[0, :, :31].float().mean() > 0.5
    assert not changed[0, :, 33:].any()
    assert changed[1, :, 33:].float().mean() > 0.5
    assert not changed[1, :, :31].any()
    assert region.shape == (2, *SIZE)
    assert len(json.loads(settings)) == 2
    one = run(node, pipe, image, masks[0], "circle", "pixel-art", refine_crop="off")[0]
    torch.testing.assert_close(one[0], edited[0], rtol=0, atol=1e-5)
    assert not (one[1] != image[1])[:, 33:].any()


def test_the_empty_mask_of_load_image_is_refused(nodes, pipe):
    with pytest.raises(UserError, match="LoadImage gives an empty one"):
        run(
            nodes["RegionRouteEditMask"], pipe, images(), torch.zeros(1, 64, 64), "circle",
            "pixel-art",
        )  # fmt: skip
    with pytest.raises(UserError, match="got 3 masks for 2 images"):
        run(
            nodes["RegionRouteEditMask"], pipe, images(2), torch.ones(3, 64, 64), "circle",
            "pixel-art",
        )  # fmt: skip


def test_a_style_image_serves_all_objects_or_one_each(nodes, pipe):
    node, style = nodes["RegionRouteEditByImage"], images(1).flip(-1)
    edited, mask, settings = run(node, pipe, images(), style, "circle\nstar")
    wanted = pipe(
        tensors(images()), ["circle", "star"], style_image=[tensors(style)[0]] * 2,
        output_type="pt",
    )  # fmt: skip
    torch.testing.assert_close(tensors(edited)[0], wanted.images[0], rtol=0, atol=1e-5)
    assert mask.shape == (1, *SIZE)
    assert json.loads(settings)[0]["object"] == ["circle", "star"]
    with pytest.raises(UserError, match="3 style images for 2 objects"):
        run(node, pipe, images(), style.expand(3, -1, -1, -1), "circle\nstar")


def test_progress_is_shown_and_an_interruption_leaves_nothing_behind(nodes, pipe, comfy):
    node, options = nodes["RegionRouteEdit"], {"steps": 4, "batch_size": 2}
    before = run(node, pipe, images(3), "circle: pixel-art", **options)[0]
    assert comfy.totals == [8]  # steps x batches
    assert comfy.updates == [1] * 8
    comfy.updates.clear()
    comfy.interrupt_after = 5
    with pytest.raises(comfy.Interrupted):
        run(node, pipe, images(3), "circle: pixel-art", **options)
    assert len(comfy.updates) == 5
    comfy.interrupt_after = None
    assert torch.equal(run(node, pipe, images(3), "circle: pixel-art", **options)[0], before)


def test_nodes_run_in_inference_mode_as_comfyui_runs_them(nodes):
    dispatch._verify.cache_clear()
    with torch.inference_mode():
        loaded, styles = run(nodes["RegionRouteLoad"], "nano", "auto", "float32", "none", "cpu")
        edited = run(nodes["RegionRouteEdit"], loaded, images(), "circle: pixel-art")[0]
    assert styles.split() == loaded.styles
    assert "pixel-art" in styles
    assert (edited != images()).any()


def test_loading_names_what_it_cannot_use(nodes, tmp_path):
    node = nodes["RegionRouteLoad"]
    zero_shot, styles = run(node, "nano", "none", "float32", "none", "cpu")
    assert zero_shot.editor.registry is None
    assert styles == ""
    with pytest.raises(UserError, match=r"no experts\.json"):
        run(node, "nano", str(tmp_path), "float32", "none", "cpu")
    with pytest.raises(UserError, match="not usable here"):
        run(node, "nano", "auto", "float32", "none", "cuda:77")


def test_experts_that_were_written_again_are_loaded_again(nodes, tmp_path):
    node = nodes["RegionRouteLoad"]
    (tmp_path / "experts.json").write_text("{}")
    before = node.fingerprint_inputs(experts=str(tmp_path), base="nano")
    assert node.fingerprint_inputs(experts=str(tmp_path), base="nano") == before
    (tmp_path / "experts.json").write_text("[]")
    assert node.fingerprint_inputs(experts=str(tmp_path), base="nano") != before
    assert node.fingerprint_inputs(experts="auto", base="nano") == ""


def test_scores_are_those_of_the_definitions(nodes):
    source, target = torch.full((1, *SIZE, 3), 0.2), torch.full((1, *SIZE, 3), 0.8)
    mask = torch.zeros(1, *SIZE)
    mask[:, :, :32] = 1
    edited = source.clone()
    edited[:, :, :32] = 0.8
    edited[:, :32, 32:] = 0.8  # half of the background
    report, coverage, leak, error = run(
        nodes["RegionRouteScore"], source, edited, mask, target=target
    )
    assert (coverage, leak) == (1, 0.5)
    assert error == pytest.approx(4 * 0.6**2 / 2, rel=1e-5)
    assert report.splitlines()[0].split() == ["Success", "1.0000", "↑"]
    without = run(nodes["RegionRouteScore"], source, edited, mask)
    assert without[1:] == (coverage, leak, error)
    assert "Success" not in without[0]
    with pytest.raises(UserError, match="edit: 1 of 32x64 pixels"):
        run(nodes["RegionRouteScore"], source, edited[:, :, :32], mask)


@pytest.fixture(scope="module")
def expert():
    """A bundled expert under ComfyUI's names, and its folder."""
    folder = bundled_experts("nano")
    registry = read_registry(folder)
    return folder, to_original(read_blend(folder, parse_blend("line-art", registry.name)))


def model_for(lora):
    """A MODEL of the fixture `comfy`, whose layers are those of a LoRA."""
    layers = [key.removesuffix(".lora_up.weight") for key in lora if "lora_up" in key]
    shapes = {
        name: (len(lora[f"{name}.lora_up.weight"]), lora[f"{name}.lora_down.weight"].shape[1])
        for name in layers
    }
    return types.SimpleNamespace(model={name: torch.zeros(*shapes[name]) for name in layers})


def test_a_model_gets_an_expert_as_the_export_writes_it(nodes, pipe, comfy, expert, tmp_path):
    from safetensors.torch import load_file

    folder, lora = expert
    model = model_for(lora)
    pipe.load_experts(folder)
    patched, mask, prompt = run(
        nodes["RegionRouteExpertLoRA"], model, pipe, images(2), "the circle", "line-art",
        strength_model=0.7,
    )  # fmt: skip
    assert patched == ("patched", model)
    [(given, strength, clip, _)] = comfy.loaded
    assert (strength, clip) == (0.7, None)
    registry = read_registry(folder)
    blend = parse_blend("line-art", registry.name)
    written = load_file(write_lora(read_blend(folder, blend), tmp_path, "line-art", "comfyui"))
    assert given.keys() == written.keys()
    assert all(torch.equal(given[name], written[name]) for name in written)
    assert prompt == "make the circle in line-art style, keep other area unchanged"
    _, expected, _ = run(nodes["RegionRouteEdit"], pipe, images(2), "circle: line-art")
    assert torch.equal(mask, expected)


def test_experts_of_another_model_are_refused(nodes, pipe, comfy, expert):
    folder, lora = expert
    call = (pipe, images(), "circle", "line-art", str(folder))
    model = model_for(lora)
    layer = next(iter(model.model))
    model.model[layer] = torch.zeros(8, 9)
    with pytest.raises(UserError, match=f"{layer} is .*, that of this MODEL 8x9: choose experts"):
        run(nodes["RegionRouteExpertLoRA"], model, *call)
    model.model[layer] = torch.zeros(72, dtype=torch.uint8)  # packed 4-bit weights have no shape
    run(nodes["RegionRouteExpertLoRA"], model, *call)
    del model.model[layer]
    with pytest.raises(UserError, match=f"this MODEL has no layer {layer}"):
        run(nodes["RegionRouteExpertLoRA"], model, *call)
    assert len(comfy.loaded) == 1


def test_outside_of_comfyui_there_is_no_model(nodes, pipe, expert, monkeypatch):
    monkeypatch.setitem(sys.modules, "comfy", None)
    for name in ("utils", "lora", "sd"):
        monkeypatch.setitem(sys.modules, f"comfy.{name}", None)
    with pytest.raises(UserError, match="inside ComfyUI only"):
        run(
            nodes["RegionRouteExpertLoRA"], object(), pipe, images(), "circle", "line-art",
            str(expert[0]),
        )  # fmt: skip


def test_an_unknown_style_of_the_finder_does_not_matter(nodes, comfy, pipe, expert, pack):
    known = pack("nodes_model")._known_style
    assert known(pipe, "pixel-art") == "pixel-art"
    assert known(pipe, "risograph") == pipe.styles[0]
