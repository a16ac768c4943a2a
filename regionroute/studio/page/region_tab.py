"""Correcting a region: click the object in the photo, or paint what belongs to it and what not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from regionroute.errors import UserError
from regionroute.studio.engine import Engine
from regionroute.studio.page.components import HEAVY, LIGHT, brush_editor, reported
from regionroute.studio.page.edit_inputs import EditInputs
from regionroute.studio.regions import (
    EDITOR_SIDE,
    PAINT,
    PAINT_OPACITY,
    REMOVE,
    clicked_mask,
    combined,
    corrected,
    editor_value,
    small_photo,
)
from regionroute.studio.session import Session
from regionroute.studio.views import message

COLOURS = [(f"rgb{colour}", PAINT_OPACITY) for colour in (PAINT, REMOVE)]
HOW = {"replace": "is the object", "add": "belongs to it too", "remove": "does not belong to it"}


@dataclass(frozen=True)
class RegionTab:
    """Components of the tab, and what happens in it."""

    engine: Engine
    status: gr.HTML
    tab: gr.Tab
    which: gr.Radio
    how: gr.Radio
    photo: gr.Image
    editor: gr.ImageEditor
    apply: gr.Button
    reset: gr.Button

    def keep(
        self, session: Session, painted: Any, words: list[str], *, required: bool = False
    ) -> dict[Any, Any]:
        """Remember the region of the object that is being edited, strokes included.

        Returns:
            Updates that show it.

        Raises:
            UserError: there is none, and it is required.
        """
        if session.editing is None or session.photo is None:
            return {}
        number, word = session.editing
        mask = corrected(session.region(number, word), painted, session.size)
        if number < len(words):
            word = words[number]  # it may have been changed since
        if required and mask is None:
            raise UserError(f"nothing is painted for {word!r}: paint the object or click it")
        session.correct(self.engine, number, word, mask)
        return {self.editor: editor_value(session.photo, mask)}

    def connect(self, state: gr.State, inputs: EditInputs) -> None:
        """Connect the tab's own events."""
        status = self.status
        outputs = [state, self.which, self.photo, self.editor, status]

        @reported(status)
        def on_open(session: Session, which: int | None, *values: Any) -> Any:
            words = inputs.words(values)
            return self._opened(session, words, min(which or 0, len(words) - 1))

        @reported(status)
        def on_which(session: Session, which: int, painted: Any, *values: Any) -> Any:
            self.keep(session, painted, inputs.words(values))
            return self._opened(session, inputs.words(values), which)

        @reported(status)
        def on_click(session: Session, how: str, painted: Any, event: gr.SelectData) -> Any:
            return self._clicked(session, how, painted, event.index)

        @reported(status)
        def on_reset(session: Session, *values: Any) -> Any:
            if session.editing is not None:
                session.corrected.pop(session.editing, None)
            number = session.editing[0] if session.editing else 0
            return self._opened(session, inputs.words(values), number)

        self.tab.select(on_open, [state, self.which, *inputs.all], outputs, **LIGHT)
        self.which.input(on_which, [state, self.which, self.editor, *inputs.all], outputs, **LIGHT)
        self.photo.select(
            on_click, [state, self.how, self.editor], outputs,
            show_progress_on=status, **HEAVY,
        )  # fmt: skip
        self.reset.click(on_reset, [state, *inputs.all], outputs, **LIGHT)

    def _opened(self, session: Session, words: list[str], number: int) -> dict[Any, Any]:
        """Updates that show an object's region."""
        if session.photo is None:
            return {self.editor: gr.skip()}
        choices = [(f"{i + 1}. {word or 'unnamed'}", i) for i, word in enumerate(words)]
        session.editing = (number, words[number])
        return {
            self.which: gr.update(choices=choices, value=number),
            self.photo: small_photo(session.photo),
            self.editor: editor_value(session.photo, session.region(*session.editing)),
        }

    def _clicked(self, session: Session, how: str, painted: Any, index: Any) -> dict[Any, Any]:
        """Updates after a click at (x, y) of the shown photo."""
        if session.photo is None or session.editing is None:
            return {self.editor: gr.skip()}
        engine = self.engine
        scale = min(1.0, EDITOR_SIDE / max(session.size))
        shown = (round(session.size[0] * scale), round(session.size[1] * scale))
        photo, point = session.photo, (int(index[0]), int(index[1]))
        how_found = engine.settings.segmenter, engine.settings.device or "cpu"
        found, name = engine.device.do(lambda: clicked_mask(photo, point, shown, *how_found))
        number, word = session.editing
        mask = combined(corrected(session.region(number, word), painted, session.size), found, how)
        session.correct(engine, number, word, mask)
        share = 0.0 if mask is None else float(mask.mean())
        told = f"{name}: the region is {share:.0%} of the photo. Correct it by brush, or apply it."
        return {
            self.editor: editor_value(session.photo, mask),
            self.status: message("done", told),
        }


def region_tab(tab: gr.Tab, engine: Engine, status: gr.HTML) -> RegionTab:
    """Lay out the tab."""
    which = gr.Radio([("1.", 0)], value=0, label="Region of", elem_id="region-of")
    with gr.Row():
        with gr.Column(min_width=300):
            how = gr.Radio(
                [(text, key) for key, text in HOW.items()], value="replace",
                label="Click the photo: what is there", elem_id="click-how",
            )  # fmt: skip
            photo = gr.Image(
                label="Click", interactive=False, buttons=[], elem_id="click-photo",
                type="filepath", height=320, format="jpeg",
            )  # fmt: skip
        with gr.Column(min_width=300):
            editor = brush_editor(
                "Magenta adds, blue removes", type="numpy", image_mode="RGBA", sources=(),
                transforms=(), layers=False, format="png", height=420, elem_id="editor",
                brush=gr.Brush(
                    default_size=20, default_color=COLOURS[0], colors=[*COLOURS], color_mode="fixed"
                ),
                eraser=gr.Eraser(default_size=20), buttons=[],
            )  # fmt: skip
    with gr.Row(elem_classes="rr-buttons"):
        apply = gr.Button("Edit with this region", variant="primary", elem_id="apply-region")
        reset = gr.Button("Forget my correction", size="sm", elem_id="reset-region")
    return RegionTab(engine, status, tab, which, how, photo, editor, apply, reset)
