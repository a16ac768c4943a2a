"""The left side of the edit tab: photo, objects, styles and options; and the job they describe."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from regionroute.errors import UserError
from regionroute.studio.engine import Engine
from regionroute.studio.jobs import EditJob, SavedSettings
from regionroute.studio.page.components import LIGHT, as_path, path_image
from regionroute.studio.page.option_inputs import option_inputs, option_values, options_of
from regionroute.studio.session import Session
from regionroute.studio.views import thumbnail

FROM_WORDS, CORRECTED = "found from the words", "as I corrected it"
# Photos of scikit-image: file, object, style.
EXAMPLES = (
    ("chelsea.png", "cat", "starry-night"),
    ("coffee.png", "cup", "woodcut"),
    ("astronaut.png", "helmet", "watercolour"),
)


@dataclass(frozen=True)
class EditInputs:
    """The input components, in the order in which handlers get their values.

    Attributes:
        rows: the number of visible rows of objects and styles.
        options: the fields of `option_inputs`.
    """

    photo: gr.Image
    rows: gr.State
    region: gr.Radio
    style_image: gr.Image
    options: dict[str, Any]
    objects: tuple[gr.Textbox, ...]
    styles: tuple[gr.Dropdown, ...]
    groups: tuple[gr.Row, ...]

    @property
    def single(self) -> list[Any]:
        """The components that there is one of."""
        return [self.photo, self.rows, self.region, self.style_image, *self.options.values()]

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
        photo, rows, region, style_image, *fields = values
        words, first = self.words(values), len(self.single) + len(self.objects)
        styles = [str(name or "").strip() for name in values[first : first + int(rows)]]
        return EditJob(
            as_path(photo, "the photo"),
            tuple(words),
            () if style_image else tuple(styles),
            Path(style_image) if style_image else None,
            options_of(dict(zip(self.options, fields, strict=False))),
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
        shown = option_values(saved, engine)
        choices = engine.styles(saved.base, shown["experts"])
        updates: dict[Any, Any] = {self.options[name]: value for name, value in shown.items()}
        updates |= {self.rows: count, self.region: region, self.style_image: None}
        words = [*saved.objects, *[""] * len(self.objects)]
        styles = [*saved.styles, *[None] * len(self.objects)]
        for index, (row, object, style) in enumerate(
            zip(self.groups, self.objects, self.styles, strict=True)
        ):
            updates[row] = gr.update(visible=index < count)
            updates[object] = words[index]
            updates[style] = gr.update(value=styles[index], choices=choices)
        return updates


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
    with gr.Accordion("Style from an example image", open=False):
        style_image = path_image("Style image, in place of the style's name", height=180)
    with gr.Accordion("Advanced", open=False, elem_id="advanced"):
        region = gr.Radio(
            [FROM_WORDS, CORRECTED], value=FROM_WORDS, label="Region", elem_id="region-source"
        )
        options = option_inputs(engine)
    inputs = EditInputs(
        photo=photo, rows=rows, region=region, style_image=style_image, options=options,
        objects=tuple(objects), styles=tuple(names), groups=tuple(groups),
    )  # fmt: skip
    _row_events(inputs, more, fewer, settings.max_objects)
    return inputs, edit, cancel


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
