"""The embedded base as it is shipped: what it must be able to do, on held-out scenes."""

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file

from pseudo_labels.scenes.draw import HELD_OUT_SEEDS, render_scene
from pseudo_labels.stylize.filters import FILTERS
from regionroute.adapters import read_registry
from regionroute.editing.request import EditRequest
from regionroute.models.embedded import nano_folder
from regionroute.models.loading import fingerprint, load_base, load_skeleton
from regionroute.pipeline import RegionRoutePipeline


@pytest.fixture(scope="module")
def nano():
    return load_base("nano")


@pytest.fixture(scope="module")
def scenes():
    """Twelve held-out scenes of one object each, clear of those the demo edits."""
    return [render_scene(HELD_OUT_SEEDS.start + 500_000 + i, count=1) for i in range(12)]


@pytest.fixture(scope="module")
def pictures(scenes):
    return torch.stack([scene.image for scene in scenes])


def test_it_fits_in_the_package():
    files = [path for path in nano_folder().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 25e6
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pkl")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_weight_stays_in_the_float8_of_its_file(dtype):
    folder = nano_folder() / "transformer"
    stored = load_file(folder / "diffusion_pytorch_model.safetensors")
    assert {weight.dtype for weight in stored.values() if weight.ndim == 2} == {torch.float8_e4m3fn}
    for transformer in (
        load_base("nano", dtype).transformer,
        FluxTransformer2DModel.from_pretrained(folder, torch_dtype=dtype),
    ):
        assert {weight.dtype for weight in transformer.state_dict().values()} == {dtype}


def test_its_experts_fit_it(nano):
    wanted = read_registry(nano_folder() / "experts").fingerprint
    assert nano.fingerprint == fingerprint(load_skeleton("nano")) == wanted


def test_the_codec_round_trip_is_above_30_db(nano, pictures):
    back = nano.decode_latents(nano.encode_images(pictures))
    assert float(-10 * (back - pictures).square().mean().log10()) > 30


@pytest.mark.parametrize("style", FILTERS)
def test_the_codec_is_not_the_limit_of_a_style(nano, scenes, pictures, style):
    styled = torch.stack([FILTERS[style](picture) for picture in pictures])
    masks = torch.stack([scene.mask(scene.words()[0]) for scene in scenes])
    target = torch.where(masks > 0.5, styled, pictures)
    back = nano.decode_latents(nano.encode_images(target))

    lost = ((back - target).square() * masks).sum()
    unedited = ((pictures - target).square() * masks).sum()
    assert float(lost / unedited) < 0.05


@pytest.mark.parametrize("by_example", [False, True])
def test_the_bundled_experts_restyle_the_object_and_little_else(scenes, by_example):
    experts = "by_example" if by_example else "auto"
    editor = RegionRoutePipeline.from_pretrained("nano", experts=experts).editor
    inside, unedited, outside = [], [], []
    for number, scene in enumerate(scenes):
        word = scene.words()[0]
        mask = scene.mask(word)
        for style, stylize in FILTERS.items():
            request = EditRequest(word, style)
            if by_example:
                example = stylize(scenes[number - 1].image)
                request = EditRequest(word, "", style_images=(example,))
            result = editor.edit(scene.image, request)
            target = stylize(scene.image)
            inside.append(((result.image - target) * 2).square().mul(mask).sum() / mask.sum() / 3)
            unedited.append(((scene.image - target) * 2).square().mul(mask).sum() / mask.sum() / 3)
            change = ((result.image - scene.image) * 2).square() * (1 - mask)
            outside.append(change.sum() / (1 - mask).sum() / 3)
    assert float(torch.stack(inside).mean() / torch.stack(unedited).mean()) < 0.4
    assert float(torch.stack(outside).mean()) < 0.01
