"""The edit tab: layout of the results, and what happens when something is pressed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from regionroute.errors import UserError
from regionroute.studio.engine import Engine, check_upload
from regionroute.studio.jobs import EditRecord, SavedSettings, read_settings
from regionroute.studio.page.components import HEAVY, LIGHT, as_path, reported
from regionroute.studio.page.edit_inputs import (
    CORRECTED,
    FROM_WORDS,
    EditInputs,
    edit_inputs,
    example_gallery,
)
from regionroute.studio.page.region_tab import RegionTab, region_tab
from regionroute.studio.session import Session
from regionroute.studio.views import message, overlay, result_message, thumbnail

PROGRESS = gr.Progress()
WELCOME = "Choose a photo, name an object in it, choose a style, and press Edit."
# On a phone the result is below the inputs.
SHOW_RESULT = """() => {
  if (window.innerWidth < 700) document.querySelector('#message').scrollIntoView();
}"""
# Sets the map's opacity in the browser, without asking the server.
SET_OPACITY = "(v) => { document.documentElement.style.setProperty('--rr-map', v); }"


@dataclass(frozen=True)
class EditTab:
    """The components that other tabs need."""

    session: gr.State
    inputs: EditInputs
    message: gr.HTML
    history: gr.Gallery
    outputs: list[Any]

    @property
    def results(self) -> list[Any]:
        """The components that show an edit."""
        return [self.session, self.message, self.history, *self.outputs]

    @property
    def everything(self) -> list[Any]:
        """The components that returning to an edit sets."""
        return [*self.results, *self.inputs.all, *self.inputs.groups]

    def restored(self, session: Session, record: EditRecord, engine: Engine) -> dict[Any, Any]:
        """Updates that return to an edit: its photo, its settings and its result.

        Raises:
            UserError: its files are deleted already.
        """
        if not (record.photo.is_file() and record.image.is_file()):
            raise UserError("this edit is too old: its files are deleted; edit the photo again")
        session.photo = record.photo  # before the browser shows it: it is not a new one
        session.size = (record.metadata["size"][0], record.metadata["size"][1])
        saved = read_settings(record.settings)
        source = _keep_regions(session, saved, engine)
        session.record = record
        return (
            {self.inputs.photo: str(record.photo)}
            | self.inputs.filled(saved, engine, source)
            | self.shown(session, record)
        )

    def shown(self, session: Session, record: EditRecord) -> dict[Any, Any]:
        """Updates that show an edit."""
        slider, maps, metadata, command, png, settings, files, tabs = self.outputs
        extra = [record.map] if record.map else []
        return {
            self.session: session,
            self.message: result_message(record),
            slider: (str(record.before), str(record.image)),
            maps: overlay(record),
            metadata: record.metadata,
            command: record.command,
            png: gr.update(value=str(record.image), interactive=True),
            settings: gr.update(value=str(record.settings), interactive=True),
            files: [str(path) for path in (*extra, *record.regions)],
            tabs: gr.update(selected="result"),
            self.history: [(str(thumbnail_file(r)), r.caption) for r in session.history],
        }


def edit_tab(engine: Engine) -> EditTab:
    """Lay out the tab and connect its events."""
    session = gr.State(Session())
    with gr.Row(elem_classes="rr-columns"):
        with gr.Column(scale=2, min_width=320):
            inputs, edit, cancel = edit_inputs(engine)
            load = gr.UploadButton(
                "Load settings from an edited image", size="sm", elem_id="load-settings",
                file_types=[".png", ".json"],
            )  # fmt: skip
            example_gallery(inputs, engine)
        with gr.Column(scale=3, min_width=320):
            status = gr.HTML(message("hint", WELCOME), elem_id="message", label="Status")
            outputs, region = _results(engine, status)
    with gr.Accordion("History: choose an edit to return to it", open=True):
        history = gr.Gallery(
            label="Edits, newest first", show_label=False, columns=6, height=190,
            allow_preview=False, elem_id="history", fit_columns=False, buttons=[],
            object_fit="cover",
        )  # fmt: skip
    tab = EditTab(session, inputs, status, history, outputs)
    _input_events(tab, region, engine)
    _edit_events(tab, region, engine, (edit, cancel, load))
    return tab


def _results(engine: Engine, status: gr.HTML) -> tuple[list[Any], RegionTab]:
    """Slider, map, correction, settings; the outputs in the order of `EditTab.shown`."""
    with gr.Tabs(selected="result") as tabs:
        with gr.Tab("Result", id="result"):
            slider = gr.ImageSlider(
                type="filepath", image_mode=None, label="Before / after", elem_id="slider",
                buttons=["fullscreen"], max_height=560, interactive=False,
            )  # fmt: skip
            with gr.Row(elem_classes="rr-buttons"):
                png = gr.DownloadButton(
                    "Download image", size="sm", interactive=False, elem_id="download"
                )
                settings = gr.DownloadButton("Download settings", size="sm", interactive=False)
        with gr.Tab("Map", id="map"):
            maps = gr.HTML(message("hint", "The map of an edit is shown here."), elem_id="map")
            opacity = gr.Slider(0, 1, 0.7, step=0.05, label="Opacity of the map", elem_id="opacity")
            opacity.input(None, opacity, None, js=SET_OPACITY, api_visibility="private")
        with gr.Tab("Region", id="region") as tab:
            region = region_tab(tab, engine, status)
        with gr.Tab("Settings", id="settings"):
            command = gr.Code(
                label="The same edit on the command line", language="shell", interactive=False,
                wrap_lines=True, elem_id="command",
            )  # fmt: skip
            metadata = gr.JSON(label="Settings, as stored in the image", elem_id="metadata")
            files = gr.File(
                label="Map, and the region of each object", file_count="multiple",
                interactive=False, elem_id="files",
            )  # fmt: skip
    return [slider, maps, metadata, command, png, settings, files, tabs], region


def _input_events(tab: EditTab, region: RegionTab, engine: Engine) -> None:
    """Another photo; another base."""
    inputs = tab.inputs

    @reported(tab.message)
    def on_photo(session: Session, photo: str | None) -> Any:
        if photo is None:
            session.photo = session.record = None
            return {tab.session: session, tab.message: message("hint", WELCOME)}
        path = Path(photo)
        if path == session.photo:
            return {tab.session: session}
        session.open_photo(path, check_upload(path, engine.settings))
        ready = "Name an object of the photo and press Edit."
        return {
            tab.session: session, tab.message: message("hint", ready), inputs.region: FROM_WORDS,
        }  # fmt: skip

    inputs.photo.change(
        on_photo, [tab.session, inputs.photo], [tab.session, tab.message, inputs.region], **LIGHT
    )

    @reported(tab.message)
    def on_base(base: str, experts: str) -> Any:
        names = engine.styles(base, experts)
        first = names[0] if names else None
        return {style: gr.update(choices=names, value=first) for style in inputs.styles}

    base, experts = inputs.options["base"], inputs.options["experts"]
    for component in (base, experts):
        component.input(on_base, [base, experts], [*inputs.styles, tab.message], **LIGHT)


def _edit_events(tab: EditTab, region: RegionTab, engine: Engine, buttons: tuple[Any, ...]) -> None:
    """Edit, with or without a corrected region; cancel; return to an edit; load settings."""
    edit, cancel, load = buttons
    inputs, results = tab.inputs, tab.results

    def run(
        session: Session, values: tuple[Any, ...], request: gr.Request, progress: gr.Progress
    ) -> Any:
        progress(0, desc="Starting")
        job = inputs.job(values, session)
        record = engine.run(
            job, str(request.session_hash), lambda n, of: progress((n, of), desc="Sampling")
        )
        session.add(record, engine.settings.history)
        return tab.shown(session, record)

    @reported(tab.message)
    def on_edit(
        session: Session, request: gr.Request, progress: gr.Progress = PROGRESS, *values: Any
    ) -> Any:
        return run(session, values, request, progress)

    @reported(tab.message)
    def on_region(
        session: Session, painted: Any, request: gr.Request,
        progress: gr.Progress = PROGRESS, *values: Any,
    ) -> Any:  # fmt: skip
        kept = region.keep(session, painted, inputs.words(values), required=True)
        index = inputs.single.index(inputs.region)
        values = (*values[:index], CORRECTED, *values[index + 1 :])
        kept[inputs.region] = CORRECTED
        return kept | run(session, values, request, progress)

    given = [tab.session, *inputs.all]
    shown: dict[str, Any] = {"show_progress_on": tab.message, **HEAVY}
    runs = [edit.click(on_edit, given, results, **shown)]
    edit.click(None, None, None, js=SHOW_RESULT, api_visibility="private")
    runs += [words.submit(on_edit, given, results, **shown) for words in inputs.objects]
    runs.append(
        region.apply.click(
            on_region,
            [tab.session, region.editor, *inputs.all],
            [*results, inputs.region, region.editor],
            **shown,
        )
    )
    region.connect(tab.session, inputs)

    def on_cancel(request: gr.Request) -> str:
        engine.cancel(str(request.session_hash))
        return message("hint", "Cancelled.")

    cancel.click(on_cancel, None, tab.message, cancels=runs, **LIGHT)

    @reported(tab.message)
    def on_history(session: Session, event: gr.SelectData) -> Any:
        return tab.restored(session, session.history[int(event.index)], engine)

    tab.history.select(on_history, tab.session, tab.everything, **LIGHT)

    @reported(tab.message)
    def on_load(session: Session, file: str | None) -> Any:
        path = as_path(file, "the edited image")
        saved = read_settings(path)
        if saved.region_masks and session.photo is None:
            raise UserError("choose the photo first: these settings hold regions of it")
        updates = inputs.filled(saved, engine, _keep_regions(session, saved, engine))
        notes = [f"Settings of {path.name} are loaded: press Edit to repeat the edit."]
        if saved.style_image:
            notes.append(f"Its style image {saved.style_image} is not stored: choose it again.")
        if session.photo is None:
            notes.append("Choose the photo as well.")
        return updates | {tab.session: session, tab.message: message("done", notes)}

    load.upload(on_load, [tab.session, load], tab.everything, **LIGHT)


def _keep_regions(session: Session, saved: SavedSettings, engine: Engine) -> str:
    """Make the stored regions of an edit the corrected ones; returns the region's source.

    Raises:
        UserError: a region is damaged, or of another size than the photo.
    """
    session.corrected, session.editing = {}, None
    regions = saved.regions()
    for number, (word, mask) in enumerate(zip(saved.objects, regions, strict=bool(regions))):
        if session.photo is not None and tuple(mask.shape) != session.size:
            raise UserError(
                f"the stored region is {mask.shape[1]}x{mask.shape[0]}, the photo is "
                f"{session.size[1]}x{session.size[0]}: choose the photo of these settings"
            )
        session.correct(engine, number, word, mask)
    return CORRECTED if regions else FROM_WORDS


def thumbnail_file(record: EditRecord) -> Path:
    """A small copy of an edit, made once."""
    path = record.image.with_name("thumbnail.webp")
    if not path.is_file():
        thumbnail(record.image).save(path)
    return path
