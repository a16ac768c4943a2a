"""The left side of the edit tab: photo, objects and styles, advanced settings; and their job."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from regionroute.editing.request import MODES
from regionroute.errors import UserError
from regionroute.routing.instances import INSTANCES
from regionroute.studio.engine import Engine
from regionroute.studio.jobs import AUTO, NONE, EditJob, SavedSettings
from regionroute.studio.page.components import LIGHT, as_path, path_image
from regionroute.studio.session import Session
from regionroute.studio.views import thumbnail

DEFAULT, ON, OFF = "default", "on", "off"
FROM_WORDS, CORRECTED = "found from the words", "as I corrected it"
# Photos of scikit-image: file, object, style.
EXAMPLES = (
    ("chelsea.png", "cat", "starry-night"),
    ("coffee.png", "cup", "woodcut"),
    ("astronaut.png", "astronaut", "watercolour"),
    ("rocket.jpg", "rocket", "neon"),
)


@dataclass(frozen=True)
class EditInputs:
    """The input components, in the order in which handlers get their values.

    Attributes:
        rows: the visible rows of objects and styles.
    """

    photo: gr.Image
    rows: gr.State
    region: gr.Radio
    style_image: gr.Image
    prompt: gr.Textbox
    base: gr.Dropdown
    experts: gr.Dropdown
    mode: gr.Dropdown
    steps: gr.Textbox
    guidance: gr.Textbox
    seed: gr.Number
    strength: gr.Slider
    instance: gr.Dropdown
    refine_crop: gr.Dropdown
    sparse: gr.Dropdown
    force: gr.Checkbox
    objects: tuple[gr.Textbox, ...]
    styles: tuple[gr.Dropdown, ...]
    groups: tuple[gr.Row, ...]

    @property
    def single(self) -> list[Any]:
        """The components that there is one of."""
        return [
            self.photo, self.rows, self.region, self.style_image, self.prompt, self.base,
            self.experts, self.mode, self.steps, self.guidance, self.seed, self.strength,
            self.instance, self.refine_crop, self.sparse, self.force,
        ]  # fmt: skip

    @property
    def all(self) -> list[Any]:
        """Every input component: the single ones, the objects, the styles."""
        return [*self.single, *self.objects, *self.styles]

    def words(self, values: Sequence[Any]) -> list[str]:
        """The objects of the visible rows, given the values of `all`."""
        first = len(self.single)
        return [str(word or "").strip() for word in values[first : first + int(values[1])]]

    def job(self, values: Sequence[Any], session: Session) -> EditJob:
        """The edit that the inputs describe.

        Args:
            values: of `all`.
            session: holds the corrected regions.

        Raises:
            UserError: no photo, a number out of range, or an object without a region.
        """
        photo, rows, region, style_image, prompt, base, experts, mode = values[:8]
        steps, guidance, seed, strength, instance, refine, sparse, force = values[8:16]
        words, first = self.words(values), len(self.single) + len(self.objects)
        styles = [str(name or "").strip() for name in values[first : first + int(rows)]]
        return EditJob(
            as_path(photo, "the photo"),
            tuple(words),
            () if style_image else tuple(styles),
            Path(style_image) if style_image else None,
            str(prompt or "").strip() or None,
            base,
            experts,
            _whole(seed or 0, "seed"),
            _steps(steps),
            _number(guidance, "guidance"),
            None if mode == DEFAULT else mode,
            float(strength),
            instance,
            _switch(refine),
            _switch(sparse),
            bool(force),
            session.regions(words) if region == CORRECTED else (),
        )

    def filled(self, saved: SavedSettings, engine: Engine, region: str) -> dict[Any, Any]:
        """Updates that put the settings of an edit into the inputs, the photo aside.

        Raises:
            UserError: more objects than the page has rows, or a base that is not offered.
        """
        count = len(saved.objects)
        if count > len(self.objects):
            raise UserError(f"{count} objects: this server allows {len(self.objects)}")
        experts = experts_name(saved, engine)
        choices = engine.styles(saved.base, experts)
        updates: dict[Any, Any] = {
            self.rows: count, self.region: region, self.style_image: None,
            self.prompt: saved.own_prompt, self.base: saved.base or next(iter(engine.bases)),
            self.experts: experts, self.mode: saved.mode or DEFAULT, self.steps: _text(saved.steps),
            self.guidance: _text(saved.guidance), self.seed: saved.seed, self.strength: saved.strength,
            self.instance: saved.instance, self.refine_crop: _state(saved.refine_crop),
            self.sparse: _state(saved.sparse), self.force: saved.force,
        }  # fmt: skip
        words = [*saved.objects, *[""] * len(self.objects)]
        styles = [*saved.styles, *[None] * len(self.objects)]
        for index, (row, object, style) in enumerate(
            zip(self.groups, self.objects, self.styles, strict=True)
        ):
            updates[row] = gr.update(visible=index < count)
            updates[object] = words[index]
            updates[style] = gr.update(value=styles[index], choices=choices)
        return updates


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


def edit_inputs(engine: Engine) -> tuple[EditInputs, gr.Button, gr.Button]:
    """Lay out the inputs; returns them and the buttons to edit and to cancel."""
    settings = engine.settings
    styles = engine.styles("")
    photo = path_image("Photo", height=280, elem_id="photo", placeholder="Drop a photo here")
    rows, objects, names, groups = gr.State(1), [], [], []
    for number in range(settings.max_objects):
        with gr.Row(visible=number == 0, elem_classes="rr-pair") as group:
            suffix = f" {number + 1}" if number else ""
            objects.append(
                gr.Textbox(
                    label=f"Object{suffix}", placeholder="a word, such as cat", min_width=120,
                    elem_id=f"object-{number + 1}", max_lines=1,
                )
            )  # fmt: skip
            names.append(
                gr.Dropdown(
                    styles, label=f"Style{suffix}", allow_custom_value=True, min_width=120,
                    elem_id=f"style-{number + 1}", value=styles[0] if styles else None,
                )
            )  # fmt: skip
        groups.append(group)
    with gr.Row(elem_classes="rr-buttons"):
        more = gr.Button("Add object", size="sm", elem_id="add-object")
        fewer = gr.Button("Remove object", size="sm", interactive=False)
    with gr.Row(elem_classes="rr-buttons rr-actions"):
        edit = gr.Button("Edit", variant="primary", elem_id="edit")
        cancel = gr.Button("Cancel", variant="stop", elem_id="cancel")
    advanced = _advanced(engine)
    inputs = EditInputs(
        photo=photo, rows=rows, objects=tuple(objects), styles=tuple(names),
        groups=tuple(groups), **advanced,
    )  # fmt: skip
    _row_events(inputs, more, fewer, settings.max_objects)
    return inputs, edit, cancel


def _advanced(engine: Engine) -> dict[str, Any]:
    """The inputs that most people leave alone, by their names in `EditInputs`."""
    settings = engine.settings
    with gr.Accordion("Style from an example image", open=False):
        style_image = path_image("Style image, in place of the style's name", height=180)
    with gr.Accordion("Advanced", open=False, elem_id="advanced"):
        region = gr.Radio(
            [FROM_WORDS, CORRECTED], value=FROM_WORDS, label="Region", elem_id="region-source"
        )
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
            refine = _choice("Refine crop", [DEFAULT, ON, OFF])
            sparse = _choice("Sparse sampling", [DEFAULT, ON, OFF])
        force = gr.Checkbox(False, label="Edit even if the object seems absent", elem_id="force")
        prompt = gr.Textbox(
            label="Own wording", placeholder="turn the [cat] into a {neon} image", max_lines=2,
            info="Object in [brackets], style in {braces}; for one object",
        )  # fmt: skip
    return {
        "region": region, "style_image": style_image, "prompt": prompt, "base": base,
        "experts": experts, "mode": mode, "steps": steps, "guidance": guidance, "seed": seed,
        "strength": strength, "instance": instance, "refine_crop": refine, "sparse": sparse,
        "force": force,
    }  # fmt: skip


def _optional_number(label: str, name: str) -> gr.Textbox:
    """A field for a number; empty: the default. Gradio's own shows 0 for an empty one."""
    return gr.Textbox(
        "", label=label, placeholder="default", min_width=100, max_lines=1, elem_id=name
    )


def _choice(label: str, choices: list[str]) -> gr.Dropdown:
    return gr.Dropdown(choices, value=choices[0], label=label, min_width=140)


def example_gallery(inputs: EditInputs, engine: Engine) -> None:
    """Photos to begin with, each with an object and a style."""
    rows = example_rows(engine.folder / "examples")
    if not rows:
        return
    with gr.Accordion("Or begin with an example", open=True):
        shown = _thumbnails(rows)

    def on_example(event: gr.SelectData) -> list[Any]:
        file, word, style = rows[int(event.index)]
        return [file, 1, word, style]

    filled = [inputs.photo, inputs.rows, inputs.objects[0], inputs.styles[0]]
    shown.select(on_example, None, filled, **LIGHT)


def _thumbnails(rows: list[list[str]]) -> gr.Gallery:
    return gr.Gallery(
        [(thumbnail(Path(file)), f"{word}, {style}") for file, word, style in rows],
        label="Examples", show_label=False, columns=4, height="auto", allow_preview=False,
        buttons=[], object_fit="cover", elem_id="examples", fit_columns=False,
    )  # fmt: skip


def example_rows(folder: Path) -> list[list[str]]:
    """Examples from scikit-image, if it is installed; browsers may fetch from `folder` only."""
    try:
        import skimage.data
    except ImportError:
        return []
    source = Path(skimage.data.__file__).parent
    folder.mkdir(exist_ok=True)
    rows = []
    for file, word, style in EXAMPLES:
        if (source / file).is_file():
            shutil.copyfile(source / file, folder / file)
            rows.append([str(folder / file), word, style])
    return rows


def _row_events(inputs: EditInputs, more: gr.Button, fewer: gr.Button, most: int) -> None:
    def show(count: int) -> list[Any]:
        rows = [gr.update(visible=index < count) for index in range(most)]
        ends = [gr.update(interactive=count < most), gr.update(interactive=count > 1)]
        return [count, *rows, *ends]

    outputs = [inputs.rows, *inputs.groups, more, fewer]
    more.click(lambda n: show(min(most, n + 1)), inputs.rows, outputs, **LIGHT)
    fewer.click(lambda n: show(max(1, n - 1)), inputs.rows, outputs, **LIGHT)
    inputs.rows.change(show, inputs.rows, outputs, **LIGHT)


def _switch(value: str) -> bool | None:
    return {ON: True, OFF: False}.get(value)


def _state(value: bool | None) -> str:
    return DEFAULT if value is None else ON if value else OFF


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _steps(text: str) -> int | None:
    value = _number(text, "steps")
    return None if value is None else _whole(value, "steps")


def _number(text: str, name: str) -> float | None:
    """The number in a field; None: it is empty.

    Raises:
        UserError: it holds something else.
    """
    try:
        value = float(text) if (text or "").strip() else None
    except ValueError:
        value = math.nan
    if value is not None and not math.isfinite(value):
        raise UserError(f"{name} {text!r}: give a number, or leave the field empty")
    return value


def _whole(value: float, name: str) -> int:
    if int(value) != value:
        raise UserError(f"{name} {value}: give a whole number")
    return int(value)
