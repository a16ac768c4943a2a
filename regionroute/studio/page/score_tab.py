"""The score tab: choose source, edit and mask, see the pixel metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from regionroute.errors import UserError
from regionroute.studio.engine import Engine, check_upload
from regionroute.studio.page.components import HEAVY, LIGHT, as_path, path_image, reported
from regionroute.studio.page.edit_tab import EditTab
from regionroute.studio.scores import score_edit
from regionroute.studio.session import Session
from regionroute.studio.views import message, table

HEADINGS = ("Metric", "Value", "Meaning")
HELP = "Give the source, the edit and the object's mask; a target adds the error on the object."


def score_tab(engine: Engine, edit: EditTab) -> None:
    """Lay out the tab and connect its events."""
    status = gr.HTML(message("hint", HELP), elem_id="score-message")
    with gr.Row():
        source = path_image("Source", height=200, min_width=150, elem_id="score-source")
        edited = path_image("Edit", height=200, min_width=150)
        mask = path_image("Mask: white on the object", height=200, min_width=150)
        target = path_image("Target, if known", height=200, min_width=150)
    with gr.Row(elem_classes="rr-buttons"):
        start = gr.Button("Score", variant="primary", elem_id="score")
        last = gr.Button("Use the last edit", elem_id="score-last")
    result = gr.HTML(elem_id="scores")

    @reported(status)
    def on_score(*files: str | None) -> Any:
        names = ("the source", "the edit", "the mask")
        paths = [as_path(file, name) for file, name in zip(files, names, strict=False)]
        paths += [Path(file) for file in files[3:] if file]
        for path in paths:
            check_upload(path, engine.settings)
        rows = engine.device.do(lambda: score_edit(*paths))
        return {result: table(rows, HEADINGS), status: message("done", "Scored.")}

    start.click(on_score, [source, edited, mask, target], [result, status], **HEAVY)

    @reported(status)
    def on_last(session: Session) -> Any:
        record = session.record
        if record is None or not record.regions:
            raise UserError("there is no edit with a region yet: make one in the first tab")
        told = f"The mask is where the edit acted: {record.caption}."
        return {
            source: str(record.photo),
            edited: str(record.image),
            mask: str(record.regions[0]),
            status: message("hint", told),
        }

    last.click(on_last, edit.session, [source, edited, mask, status], **LIGHT)
