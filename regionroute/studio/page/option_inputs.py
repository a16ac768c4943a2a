"""The fields under "Advanced", and the options of an edit that they hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from regionroute.config.choices import INSTANCES, MODES, SPARSE_QUALITIES
from regionroute.errors import UserError
from regionroute.studio.engine import Engine
from regionroute.studio.jobs import AUTO, NONE, JobOptions, SavedSettings

DEFAULT, ON, OFF = "default", "on", "off"
SWITCH = {DEFAULT: None, ON: True, OFF: False}


def option_inputs(engine: Engine) -> dict[str, Any]:
    """Lay out the fields; returns them by their names in `JobOptions`."""
    with gr.Row():
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=100, elem_id="seed")
        strength = gr.Slider(0, 1, 1, step=0.05, label="Strength", min_width=160)
    with gr.Row():
        base = gr.Dropdown(
            list(engine.bases), value=next(iter(engine.bases)), label="Base", min_width=140,
            elem_id="base",
        )  # fmt: skip
        experts = gr.Dropdown(engine.experts, value=AUTO, label="Experts", min_width=140)
    with gr.Row():
        mode = _choice("Mode", [DEFAULT, *MODES])
        instance = _choice("Which of several", list(INSTANCES))
    with gr.Row():
        steps = _optional_number("Steps", "steps")
        guidance = _optional_number("Guidance", "guidance")
    with gr.Row():
        refine = _choice("Refine crop", list(SWITCH))
    with gr.Row():
        sparse = _choice("Sparse sampling", list(SWITCH))
        quality = _choice("Sparse quality", list(SPARSE_QUALITIES), "balanced")
    force = gr.Checkbox(False, label="Edit even if the object seems absent", elem_id="force")
    prompt = gr.Textbox(
        label="Own wording", placeholder="turn the [cat] into a {neon} image", max_lines=2,
        info="Object in [brackets], style in {braces}; for one object",
    )  # fmt: skip
    return {
        "seed": seed, "strength": strength, "base": base, "experts": experts, "mode": mode,
        "instance": instance, "steps": steps, "guidance": guidance, "refine_crop": refine,
        "sparse": sparse, "sparse_quality": quality, "force": force, "prompt": prompt,
    }  # fmt: skip


def options_of(values: Mapping[str, Any]) -> JobOptions:
    """The options that the fields of `option_inputs` hold.

    Raises:
        UserError: a field holds no number, or a fraction where a whole number is needed.
    """
    mode = values["mode"]
    return JobOptions(
        seed=_whole(values["seed"] or 0, "seed"),
        strength=float(values["strength"]),
        steps=_whole(_number(values["steps"], "steps"), "steps"),
        guidance=_number(values["guidance"], "guidance"),
        mode=None if mode == DEFAULT else mode,
        instance=values["instance"],
        refine_crop=SWITCH[values["refine_crop"]],
        sparse=SWITCH[values["sparse"]],
        sparse_quality=values["sparse_quality"],
        force=bool(values["force"]),
        prompt=str(values["prompt"] or "").strip() or None,
        base=values["base"],
        experts=values["experts"],
    )


def option_values(saved: SavedSettings, engine: Engine) -> dict[str, Any]:
    """What the fields of `option_inputs` show for the settings of an edit.

    Raises:
        UserError: experts that this server does not offer.
    """
    shown: dict[str, Any] = {name: getattr(saved, name) for name in ("seed", "strength", "force")}
    for name in ("steps", "guidance"):
        value = getattr(saved, name)
        shown[name] = "" if value is None else f"{value:g}"
    for name in ("refine_crop", "sparse"):
        shown[name] = next(key for key, on in SWITCH.items() if on is getattr(saved, name))
    return shown | {
        "base": saved.base or next(iter(engine.bases)),
        "experts": experts_name(saved, engine),
        "mode": saved.mode or DEFAULT,
        "instance": saved.instance,
        "sparse_quality": saved.sparse_quality,
        "prompt": saved.own_prompt,
    }


def experts_name(saved: SavedSettings, engine: Engine) -> str:
    """The experts of the settings under the name by which this server offers them.

    Raises:
        UserError: it does not offer them.
    """
    if saved.experts is None:
        return NONE
    if saved.experts in engine.settings.experts:
        return saved.experts
    if Path(saved.experts).name in ("experts", "experts_by_example"):
        return AUTO
    raise UserError(
        f"these settings use the experts {Path(saved.experts).name!r}, which this server does not "
        "offer: start it with `regionroute serve --experts NAME=DIR`"
    )


def _choice(label: str, choices: list[str], value: str | None = None) -> gr.Dropdown:
    return gr.Dropdown(choices, value=value or choices[0], label=label, min_width=140)


def _optional_number(label: str, name: str) -> gr.Textbox:
    """A field for a number; empty: the default. `gr.Number` turns an empty one into 0."""
    return gr.Textbox(
        "", label=label, placeholder="default", min_width=100, max_lines=1, elem_id=name
    )


def _number(text: str | None, name: str) -> float | None:
    try:
        value = float(text) if text and text.strip() else None
    except ValueError:
        value = math.nan
    if value is not None and not math.isfinite(value):
        raise UserError(f"{name} {text!r}: give a number, or leave the field empty")
    return value


def _whole(value: Any, name: str) -> Any:
    if value is not None and int(value) != value:
        raise UserError(f"{name} {value}: give a whole number")
    return None if value is None else int(value)
