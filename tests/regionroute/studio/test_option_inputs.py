"""The fields under "Advanced": what they hold, and what they show for the settings of an edit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the studio needs gradio")

import gradio as gr

from regionroute.errors import UserError
from regionroute.studio.engine import Engine
from regionroute.studio.jobs import JobOptions, SavedSettings
from regionroute.studio.page.option_inputs import option_inputs, option_values, options_of
from regionroute.studio.settings import StudioSettings


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(StudioSettings(experts={"mine": "runs/mine"}), tmp_path)


@pytest.fixture
def fields(engine: Engine) -> dict[str, Any]:
    with gr.Blocks():
        return option_inputs(engine)


def values(fields: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return {name: field.value for name, field in fields.items()} | changed


def test_untouched_fields_are_the_defaults(engine: Engine, fields: dict[str, Any]) -> None:
    assert set(fields) == set(JobOptions.model_fields)
    assert options_of(values(fields)) == JobOptions(base=next(iter(engine.bases)))


def test_no_field_for_numbers_is_empty(fields: dict[str, Any]) -> None:
    """The browser turns an empty `gr.Number` into 0 as soon as it is shown."""
    assert all(field.value is not None for field in fields.values() if isinstance(field, gr.Number))


def test_fields_are_read(fields: dict[str, Any]) -> None:
    given = {
        "seed": 7, "strength": 0.5, "steps": " 12 ", "guidance": "2.5", "mode": "routed",
        "instance": "largest", "refine_crop": "off", "sparse": "on", "force": True,
        "sparse_quality": "high",
        "prompt": " turn the [cat] into a {neon} image ", "base": "nano", "experts": "mine",
    }  # fmt: skip
    assert options_of(values(fields, **given)) == JobOptions(
        seed=7, strength=0.5, steps=12, guidance=2.5, mode="routed", instance="largest",
        refine_crop=False, sparse=True, sparse_quality="high", force=True, base="nano",
        experts="mine", prompt="turn the [cat] into a {neon} image",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("steps", "many", "steps 'many': give a number"),
        ("steps", "2.5", "steps 2.5: give a whole number"),
        ("guidance", "nan", "guidance 'nan': give a number"),
        ("seed", 1.5, "seed 1.5: give a whole number"),
    ],
)
def test_other_texts_are_refused(
    fields: dict[str, Any], name: str, text: Any, problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        options_of(values(fields, **{name: text}))


def test_settings_of_an_edit_are_shown_and_read_again(
    engine: Engine, fields: dict[str, Any]
) -> None:
    saved = SavedSettings(
        object="cat", style="neon", seed=3, steps=4, guidance=1.5, mode="plain", sparse=False,
        refine_crop=True, base="nano", experts="mine", prompt="make it a neon cat",
    )  # fmt: skip
    shown = option_values(saved, engine)
    assert set(shown) == set(fields)
    options = options_of(shown)
    assert options.model_dump() == {name: getattr(saved, name) for name in JobOptions.model_fields}
    with pytest.raises(UserError, match="'theirs', which this server does not offer"):
        option_values(saved.model_copy(update={"experts": "runs/theirs"}), engine)
