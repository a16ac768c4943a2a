"""The compare tab: the same edit with several seeds and strengths, side by side."""

from __future__ import annotations

import dataclasses
from typing import Any

import gradio as gr

from regionroute.studio.engine import Engine, seeds_of, strengths_of
from regionroute.studio.jobs import EditJob, EditRecord
from regionroute.studio.page.components import HEAVY, LIGHT, reported
from regionroute.studio.page.edit_tab import EditTab, thumbnail_file
from regionroute.studio.session import Session
from regionroute.studio.views import message

PROGRESS = gr.Progress()
HELP = "Repeats the edit of the first tab. Choose a result to open it there."


def variants(job: EditJob, seeds: str, strengths: str, most: int) -> list[EditJob]:
    """The job with each seed at each strength.

    Raises:
        UserError: other texts than lists of numbers, or too many variants.
    """
    values = strengths_of(strengths, most)
    return [
        dataclasses.replace(
            job, options=job.options.model_copy(update={"seed": seed, "strength": strength})
        )
        for seed in seeds_of(seeds, most // len(values))
        for strength in values
    ]


def compare_tab(engine: Engine, edit: EditTab, tabs: gr.Tabs) -> None:
    """Lay out the tab and connect its events."""
    with gr.Row():
        seeds = gr.Textbox(
            "0-2", label="Seeds", info="such as 0, 1, 5 or 0-3", min_width=140, elem_id="seeds"
        )
        strengths = gr.Textbox(
            "0.5, 1",
            label="Strengths",
            info="numbers from 0 to 1",
            min_width=140,
            elem_id="strengths",
        )
    with gr.Row(elem_classes="rr-buttons"):
        start = gr.Button("Compare", variant="primary", elem_id="compare")
        cancel = gr.Button("Cancel", variant="stop")
    status = gr.HTML(message("hint", HELP), elem_id="compare-message")
    gallery = gr.Gallery(
        label="Seeds and strengths", columns=4, allow_preview=False, fit_columns=False,
        buttons=[], object_fit="contain", height="auto", elem_id="compared",
    )  # fmt: skip
    compared = gr.State([])

    @reported(status)
    def on_compare(
        session: Session, seeds: str, strengths: str, request: gr.Request,
        progress: gr.Progress = PROGRESS, *values: Any,
    ) -> Any:  # fmt: skip
        jobs = variants(
            edit.inputs.job(values, session), seeds, strengths, engine.settings.max_compared
        )
        records: list[EditRecord] = []
        for number, job in enumerate(jobs):
            progress((number, len(jobs)), desc="Comparing", unit="edits")
            records.append(engine.run(job, str(request.session_hash)))
        for record in reversed(records):
            session.add(record, engine.settings.history)
        return {
            edit.session: session,
            compared: records,
            gallery: [
                (
                    str(thumbnail_file(one)),
                    "seed {seed} · strength {strength:g}".format_map(one.metadata),
                )
                for one in records
            ],
            status: message("done", f"{len(records)} edits. {HELP}"),
        }

    run = start.click(
        on_compare,
        [edit.session, seeds, strengths, *edit.inputs.all],
        [edit.session, compared, gallery, status],
        show_progress_on=status,
        **HEAVY,
    )

    def on_cancel(request: gr.Request) -> str:
        engine.cancel(str(request.session_hash))
        return message("hint", "Cancelled.")

    cancel.click(on_cancel, None, status, cancels=[run], **LIGHT)

    @reported(status)
    def on_choose(session: Session, records: list[EditRecord], event: gr.SelectData) -> Any:
        shown = edit.restored(session, records[int(event.index)], engine)
        return shown | {tabs: gr.update(selected="edit")}

    gallery.select(on_choose, [edit.session, compared], [*edit.everything, tabs, status], **LIGHT)
