"""The embedded base for photos as it is shipped, on photos it has never seen."""

import json
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from pseudo_labels.stylize.registry import load_styles
from regionroute.data.images import read_image, read_mask, resize
from regionroute.diffusion.flow import draw_noise, sample
from regionroute.editing.editor import Editor
from regionroute.editing.request import EditRequest
from regionroute.models.embedded import NAMES, nano_folder
from regionroute.models.loading import load_base
from regionroute.pipeline import RegionRoutePipeline

SIDE = 128
PHOTOS = ("dog_00", "cat_01", "candle_00", "robot_toy_00", "backpack_dog_00", "can_00")
STYLES = ("starry-night", "woodcut", "neon", "cyberpunk")


@pytest.fixture(scope="module")
def nano():
    return load_base("nano-photos")


@pytest.fixture(scope="module")
def photos(assets):
    """Held-out photos (picture, mask, word), as large as the model sees them."""
    rows = map(json.loads, (assets / "photos" / "labels.jsonl").read_text().splitlines())
    objects = {row["image"]: row["objects"][0] for row in rows}
    found = []
    for name in PHOTOS:
        entry = objects[f"{name}.jpg"]
        image = resize(read_image(assets / "photos" / f"{name}.jpg")[None], (SIDE, SIDE))[0]
        mask = read_mask(assets / "photos" / entry["mask"])
        mask = (F.interpolate(mask[None], (SIDE, SIDE), mode="area")[0] >= 0.5).float()
        found.append((image.clamp(0, 1), mask, entry["word"]))
    return found


def test_both_bases_and_their_experts_fit_in_the_package():
    files = [path for name in NAMES for path in nano_folder(name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 40e6
    experts = {"experts", "experts_by_example"}
    base = [x for x in files if "nano_photos" in x.parts and not experts & {*x.parts}]
    assert sum(path.stat().st_size for path in base) < 25e6
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pkl")]


def test_the_codec_keeps_photos_above_32_db(nano, photos):
    pictures = torch.stack([image for image, _, _ in photos])
    back = nano.decode_latents(nano.encode_images(pictures))
    error = (back - pictures).square().mean((1, 2, 3))
    assert float(-10 * error.mean().log10()) > 32


@pytest.mark.parametrize("style", load_styles("small_photos", STYLES), ids=STYLES)
def test_it_knows_its_styles(nano, photos, style):
    pictures = torch.stack([image for image, _, _ in photos])
    stylizer = style.build()
    targets = torch.stack([stylizer.stylize(picture, style.spec) for picture in pictures])
    states, pooled = nano.encode_prompts([f"make the image in {style.spec.words} style"])
    context = nano.encode_images(pictures)
    noise = torch.cat([draw_noise((1, *context.shape[1:]), seed) for seed in range(len(pictures))])
    latents = sample(
        nano.transformer, nano.scheduler, context, states.expand(len(pictures), -1, -1),
        pooled.expand(len(pictures), -1), steps=nano.settings.steps, guidance=1.0, noise=noise,
    )  # fmt: skip
    painted = nano.decode_latents(latents)
    left = (painted - targets).square().mean() / (pictures - targets).square().mean()
    assert float(left) < 0.5


def test_words_it_was_never_taught_lie_near_those_it_was(nano):
    embedding = nano.text_encoder_2.get_input_embeddings().weight

    def likeness(a, b):
        ids = nano.tokenizer_2.convert_tokens_to_ids([f"▁{a}", f"▁{b}"])
        return float(F.cosine_similarity(embedding[ids[0]], embedding[ids[1]], dim=0))

    for word, near, far in (
        ("puppy", "dog", "cup"), ("mug", "cup", "dog"), ("kitten", "cat", "laptop"),
    ):  # fmt: skip
        assert likeness(word, near) > likeness(word, far) + 0.1


@pytest.fixture(scope="module")
def editor() -> Editor:
    return RegionRoutePipeline.from_pretrained("nano-photos").editor


def test_the_bundled_experts_restyle_the_object_and_little_else(editor, photos):
    outside, covered = [], []
    for image, mask, word in photos:
        for style in STYLES:
            edited = editor.edit(image, EditRequest(word, style)).image
            changed = ((edited - image).abs().amax(0, keepdim=True) > 0.1).float()
            radius = round(0.03 * SIDE)
            wide = F.max_pool2d(mask, 2 * radius + 1, stride=1, padding=radius)
            covered.append((changed * mask).sum() / mask.sum())
            outside.append((changed * (1 - wide)).sum() / (1 - wide).sum())
    assert float(torch.stack(covered).mean()) > 0.5
    assert float(torch.stack(outside).mean()) < 0.25


def test_an_example_image_shows_the_style(photos):
    """Each style of an example is nearer to its own target than the photo is."""
    editor = RegionRoutePipeline.from_pretrained(experts="by_example").editor
    assert editor.backbone.name == "nano-photos"
    left, unedited = [], []
    for (image, mask, word), (other, _, _) in pairwise(photos[:4]):
        for style in load_styles("small_experts", ("starry-night", "neon", "blueprint")):
            stylizer = style.build()
            target = stylizer.stylize(image, style.spec)
            example = stylizer.stylize(other, style.spec)
            request = EditRequest(word, "", regions=(mask[0],), style_images=(example,))
            edited = editor.edit(image, request).image
            left.append(((edited - target).square() * mask).sum() / mask.sum())
            unedited.append(((image - target).square() * mask).sum() / mask.sum())
    assert float(torch.stack(left).mean() / torch.stack(unedited).mean()) < 0.5
