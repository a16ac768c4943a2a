import numpy as np
import pytest
import torch

from pseudo_labels.bank.tasks import COLOURS, pretraining_pairs, recolour
from pseudo_labels.scenes.draw import render_scene
from pseudo_labels.stylize.filters import FILTERS


@pytest.fixture(scope="module")
def scene():
    return render_scene(5, size=48, count=2)


def test_every_task_occurs_and_none_restyles_a_region(scene):
    pairs = pretraining_pairs(scene, np.random.default_rng(0))

    assert [pair.task for pair in pairs] == ["copy"] + ["style"] * len(FILTERS) + [
        "recolour"
    ] * 3 + ["tint"]
    for pair in pairs:
        named = any(word in pair.prompt for word in scene.words())
        styled = any(style in pair.prompt for style in FILTERS)
        assert not (named and styled), pair.prompt


def test_recolouring_changes_the_named_object_alone(scene):
    for pair in pretraining_pairs(scene, np.random.default_rng(1)):
        if pair.task != "recolour":
            continue
        word = next(word for word in scene.words() if word in pair.prompt)
        outside = scene.mask(word) < 0.5
        assert torch.equal(pair.target * outside, scene.image * outside)
        assert not torch.equal(pair.target, scene.image)


def test_style_targets_are_the_filters(scene):
    styles = [
        pair for pair in pretraining_pairs(scene, np.random.default_rng(2)) if pair.task == "style"
    ]

    for pair, (name, stylize) in zip(styles, FILTERS.items(), strict=True):
        assert name in pair.prompt
        assert torch.equal(pair.target, stylize(scene.image))


@pytest.mark.parametrize("colour", COLOURS)
def test_recolour_keeps_light_and_dark_in_order(colour):
    ramp = torch.linspace(0, 1, 16).expand(3, 4, 16)

    painted = recolour(ramp, colour)

    assert painted.min() >= 0
    assert painted.max() <= 1
    assert (painted.mean((0, 1)).diff() >= -1e-6).all()
