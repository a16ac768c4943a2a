"""Which of several objects of one word."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from regionroute.cli import edit_arguments as edit_command
from regionroute.config.choices import INSTANCES
from regionroute.editing.editor import Editor
from regionroute.editing.request import EditOptions, EditRequest
from regionroute.errors import UserError
from regionroute.models.backbone import Backbone
from regionroute.routing.instances import choose_instances

# Three parts: top left (4 tokens), right (2), bottom (1, soft around it).
GATES = torch.zeros(1, 1, 8, 8)
GATES[..., 0:2, 0:2] = 0.9
GATES[..., 2:4, 6] = 0.8
GATES[..., 7, 3] = 1.0
GATES[..., 6, 3] = 0.4


@pytest.mark.parametrize(
    ("which", "place"),
    [
        ("largest", (0, 0)),
        ("leftmost", (0, 0)),
        ("topmost", (0, 0)),
        ("rightmost", (3, 6)),
        ("bottommost", (7, 3)),
    ],
)
def test_one_part_is_kept_with_what_is_nearest_to_it(which: str, place: tuple[int, int]) -> None:
    keep, counts = choose_instances(GATES, which)
    assert counts.tolist() == [[3]]
    left = (GATES * keep)[0, 0]
    assert left[place] > 0
    parts = {(0, 0): 4 * 0.9, (3, 6): 2 * 0.8, (7, 3): 1.4}
    assert left.sum().item() == pytest.approx(parts[place])


def test_all_keeps_everything_and_counts() -> None:
    keep, counts = choose_instances(GATES, "all")
    assert keep.eq(1).all()
    assert counts.item() == 3


def test_diagonal_tokens_are_one_and_one_part_is_left_whole() -> None:
    gates = torch.zeros(1, 2, 4, 4)
    gates[0, 0, 0, 0] = gates[0, 0, 1, 1] = 0.7
    gates[0, 0, 3, 3] = 0.3  # below the boundary, far off
    keep, counts = choose_instances(gates, "rightmost")
    assert counts.tolist() == [[1, 0]]
    assert keep.eq(1).all()


def test_the_edit_touches_the_chosen_part_alone(
    tiny_backbone: Backbone, tiny_experts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = Editor(tiny_backbone, tiny_experts)
    editor.routing = editor.routing.model_copy(update={"radius": 0.0})
    gates = torch.zeros(1, 1, 6, 10)
    gates[..., 1:3, 1] = gates[..., 1:3, 8] = 1
    monkeypatch.setattr("regionroute.editing.sampler.token_gates", lambda maps, config: gates)
    image = torch.rand(3, 24, 40, generator=torch.Generator().manual_seed(0))
    changed = {}
    for which in ("all", "leftmost", "rightmost"):
        result = editor.edit(
            image, EditRequest("dog", "lines"), EditOptions(mode="routed", steps=1, instance=which)
        )
        assert result.settings["instances_found"] == [2]
        changed[which] = (result.image != image).any(0)
    assert changed["leftmost"][:, :20].any()
    assert not changed["leftmost"][:, 24:].any()
    assert changed["rightmost"][:, 24:].any()
    assert not changed["rightmost"][:, :16].any()
    assert (changed["leftmost"] | changed["rightmost"]).equal(changed["all"])


def test_what_has_no_instances_is_refused(tiny_backbone: Backbone) -> None:
    editor, image = Editor(tiny_backbone), torch.rand(3, 24, 40)
    with pytest.raises(UserError, match="instance largest needs mode routed"):
        editor.edit(image, EditRequest("dog", "ink"), EditOptions(instance="largest", mode="plain"))
    with pytest.raises(UserError, match="must be one of all, largest"):
        editor.resolved(EditOptions(instance="second"))  # type: ignore[arg-type]
    given = EditRequest("dog", "ink", regions=(torch.ones(24, 40),))
    with pytest.raises(UserError, match="together with region maps"):
        editor.edit(image, given, EditOptions(instance="largest", mode="routed"))


def test_the_command_offers_them_all() -> None:
    assert edit_command.INSTANCES == INSTANCES
