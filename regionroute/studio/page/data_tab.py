"""The data tab: open a data set, filter its samples, exclude some."""

from __future__ import annotations

import math
from typing import Any

import gradio as gr

from regionroute.errors import UserError
from regionroute.studio.engine import Engine
from regionroute.studio.page.components import reported
from regionroute.studio.samples import ANY, PAGE, STATES, DataSet, Filter, data_sets, open_data_set
from regionroute.studio.views import message

HELP = "Excluded samples are left out when `regionroute label` is run again on the folder."
QUEUED: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}


def data_tab(engine: Engine) -> None:
    """Lay out the tab and connect its events."""
    names = data_sets(engine.settings.data)
    with gr.Row():
        name = gr.Dropdown(
            names, value=names[0] if names else None, label="Data set of `regionroute label`",
            allow_custom_value=True, elem_id="data-set", scale=3, min_width=200,
        )  # fmt: skip
        opener = gr.Button("Open", variant="primary", elem_id="data-open", scale=1, min_width=100)
    status = gr.HTML(message("hint", HELP), elem_id="data-message")
    with gr.Row():
        filters = [
            gr.Dropdown([ANY], value=ANY, label=label, min_width=130)
            for label in ("Object", "Style", "Split")
        ]
        filters.append(gr.Dropdown(list(STATES), value=ANY, label="Show", min_width=130))
        page = gr.Slider(1, 2, 1, step=1, label="Page", min_width=160, interactive=True)
    gallery = gr.Gallery(
        label="Targets; choose one to look at it", columns=6, allow_preview=False,
        fit_columns=False, height="auto", elem_id="data-samples", buttons=[], object_fit="contain",
    )  # fmt: skip
    detail = gr.Gallery(
        label="Photo, masks and target", columns=4, height="auto", elem_id="data-detail",
        buttons=["fullscreen"], object_fit="contain", visible=False,
    )  # fmt: skip
    with gr.Row(elem_classes="rr-buttons"):
        exclude = gr.Button("Exclude this sample", interactive=False, elem_id="data-exclude")
        include = gr.Button("Keep this sample", interactive=False, elem_id="data-include")
    opened, chosen = gr.State(None), gr.State(None)

    def listed(data: DataSet, values: tuple[Any, ...]) -> dict[Any, Any]:
        """Updates that show the samples of a filter."""
        *wanted, number = values
        found = data.select(Filter(*wanted))
        pages = max(1, math.ceil(len(found) / PAGE))
        number = min(int(number), pages)
        counts = f"{len(found)} of {len(data.manifest)} samples, {len(data.excluded)} excluded."
        return {
            gallery: data.page(found, number),
            page: gr.update(maximum=max(2, pages), value=number),
            status: message("done", f"{data.name}: {counts} {HELP}"),
        }

    @reported(status)
    def on_open(name: str) -> Any:
        data = open_data_set(str(name or ""), engine.settings.data)
        choices = data.choices()
        updates: dict[Any, Any] = {
            box: gr.update(choices=found, value=ANY)
            for box, found in zip(filters, choices, strict=False)
        }
        updates[filters[3]] = ANY
        return updates | {opened: data, chosen: None} | listed(data, (ANY,) * 4 + (1,))

    shown = [gallery, page, status]
    opener.click(on_open, name, [*filters, opened, chosen, *shown], **QUEUED)

    @reported(status)
    def on_filter(data: DataSet | None, *values: Any) -> Any:
        return listed(_opened(data), values)

    for component in (*filters, page):
        component.input(on_filter, [opened, *filters, page], shown, **QUEUED)

    @reported(status)
    def on_sample(data: DataSet | None, event: gr.SelectData, *values: Any) -> Any:
        data = _opened(data)
        *wanted, number = values
        index = (int(number) - 1) * PAGE + int(event.index)
        sample = data.select(Filter(*wanted))[index]
        out = sample.id in data.excluded
        return {
            chosen: sample.id,
            detail: gr.update(value=data.images(sample), visible=True),
            exclude: gr.update(interactive=not out),
            include: gr.update(interactive=out),
        }

    gallery.select(
        on_sample, [opened, *filters, page], [chosen, detail, exclude, include, status], **QUEUED
    )

    def mark(excluded: bool) -> Any:
        @reported(status)
        def on_mark(data: DataSet | None, sample: str | None, *values: Any) -> Any:
            data = _opened(data)
            if sample is None:
                raise UserError("no sample is chosen: choose one above first")
            data.exclude([sample], excluded)
            ends = {
                exclude: gr.update(interactive=not excluded),
                include: gr.update(interactive=excluded),
            }
            return listed(data, values) | ends

        return on_mark

    for button, value in ((exclude, True), (include, False)):
        button.click(
            mark(value), [opened, chosen, *filters, page], [*shown, exclude, include], **QUEUED
        )


def _opened(data: DataSet | None) -> DataSet:
    if data is None:
        raise UserError("no data set is open: choose one and press Open")
    return data
