import numpy as np
import pytest
import torch

from pseudo_labels.bank.tasks import COLOURS, pretraining_tasks, recolour
from pseudo_labels.scenes.draw import render_scene
from pseudo_labels.stylize.filters import FILTERS


@pytest.fixture(scope="module")
def scene():
    return render_scene(5, size=48, count=2)


def test_every_task_occurs_and_none_restyles_a_region(scene):
    tasks = pretraining_tasks(scene, np.random.default_rng(0), recolours=3)

    assert [task.name for task in tasks] == ["copy"] + ["style"] * len(FILTERS) + [
        "recolour"
    ] * 3 + ["tint"]
    for task in tasks:
        named = any(word in task.prompt for word in scene.words())
        styled = any(style in task.prompt for style in FILTERS)
        assert not (named and styled), task.prompt


def test_recolouring_changes_the_named_object_alone(scene):
    for task in pretraining_tasks(scene, np.random.default_rng(1)):
        if task.name != "recolour":
            continue
        word = next(word for word in scene.words() if word in task.prompt)
        outside = scene.mask(word) < 0.5
        assert torch.equal(task.target * outside, scene.image * outside)
        assert not torch.equal(task.target, scene.image)


def test_style_targets_are_the_filters(scene):
    styles = [
        task for task in pretraining_tasks(scene, np.random.default_rng(2)) if task.name == "style"
    ]

    for task, (name, stylize) in zip(styles, FILTERS.items(), strict=True):
        assert name in task.prompt
        assert torch.equal(task.target, stylize(scene.image))


@pytest.mark.parametrize("colour", COLOURS)
def test_recolour_keeps_light_and_dark_in_order(colour):
    ramp = torch.linspace(0, 1, 16).expand(3, 4, 16)

    painted = recolour(ramp, colour)

    assert painted.min() >= 0
    assert painted.max() <= 1
    assert (painted.mean((0, 1)).diff() >= -1e-6).all()
