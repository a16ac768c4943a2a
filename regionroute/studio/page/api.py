"""Every action as a named endpoint with a docstring, for `gradio_client` and MCP clients."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from pydantic import ValidationError

from regionroute.data.images import read_soft_mask, write_image
from regionroute.errors import UserError
from regionroute.studio.engine import Cancelled, Engine, check_upload
from regionroute.studio.jobs import AUTO, EditJob, EditRecord, JobOptions, read_settings
from regionroute.studio.page.compare_tab import variants
from regionroute.studio.page.components import DEVICE, as_path, path_image, sentence
from regionroute.studio.regions import clicked_mask
from regionroute.studio.samples import ANY, Filter, caption, open_data_set
from regionroute.studio.scores import score_edit

PROGRESS = gr.Progress()


def endpoints(engine: Engine) -> None:
    """Add the endpoints to the page that is being built; none of them is seen on it."""
    with gr.Column(visible=False):
        _edit_endpoints(engine)
        _other_endpoints(engine)
        _data_endpoints(engine)


def _edit_endpoints(engine: Engine) -> None:
    photo, mask = _image("photo"), gr.File(label="region_masks", file_count="multiple")
    style_image = _image("style_image")
    objects, styles = gr.JSON(label="objects"), gr.JSON(label="styles")
    options = gr.JSON(label="options", value={})
    edited, maps = _image("edited"), _image("map")
    regions = gr.File(label="regions", file_count="multiple")
    settings = gr.JSON(label="settings")

    def edit(
        photo: str, objects: list[str], styles: list[str], request: gr.Request,
        progress: gr.Progress = PROGRESS, options: dict[str, Any] | None = None,
        style_image: str | None = None, region_masks: list[str] | None = None,
    ) -> tuple[str, str | None, list[str], dict[str, Any]]:  # fmt: skip
        """Restyle objects of a photo and keep the rest.

        Args:
            photo: the image to edit.
            objects: word or phrase of each object, such as ["cat"].
            styles: style of each object, such as ["neon"]; empty with a style image.
            request: filled in by Gradio.
            progress: filled in by Gradio.
            options: seed, strength, steps, guidance, mode, instance, refine_crop, sparse,
                sparse_quality, force (edit even if the object seems absent), prompt, base,
                experts; those that are missing have the server's defaults.
            style_image: a reference image of the style.
            region_masks: where each object is, grey images of the photo's size.

        Returns:
            The edited image (a PNG with its settings), the attention map, the region of each
            object, and the settings with the warnings.
        """
        job = _job(engine, photo, objects, styles, options, style_image, region_masks)
        record = engine.run(
            job, str(request.session_hash), lambda n, of: progress((n, of), desc="Sampling")
        )
        return _answer(record)

    given = [photo, objects, styles, options, style_image, mask]
    _endpoint(edit, given, [edited, maps, regions, settings], **DEVICE)

    seeds, strengths = gr.Textbox("0-2", label="seeds"), gr.Textbox("1", label="strengths")
    gallery = gr.File(label="edits", file_count="multiple")

    def compare(
        photo: str, objects: list[str], styles: list[str], seeds: str, strengths: str,
        request: gr.Request, options: dict[str, Any] | None = None,
    ) -> tuple[list[str], list[dict[str, Any]]]:  # fmt: skip
        """Make the same edit with several seeds and strengths.

        Args:
            photo: the image to edit.
            objects: word or phrase of each object.
            styles: style of each object.
            seeds: such as "0-3" or "0, 5".
            strengths: such as "0.5, 1".
            request: filled in by Gradio.
            options: as of `edit`.

        Returns:
            The edited images, and the settings of each.
        """
        job = _job(engine, photo, objects, styles, options, None, None)
        jobs = variants(job, seeds, strengths, engine.settings.max_compared)
        records = [engine.run(one, str(request.session_hash)) for one in jobs]
        return [str(r.image) for r in records], [r.metadata for r in records]

    _endpoint(
        compare, [photo, objects, styles, seeds, strengths, options], [gallery, settings], **DEVICE
    )

    def cancel(request: gr.Request) -> bool:
        """End this client's running edit after its current step.

        Returns:
            Whether one was running.
        """
        return engine.cancel(str(request.session_hash))

    _endpoint(cancel, [], [gr.Checkbox(label="cancelled")], queue=False)


def _other_endpoints(engine: Engine) -> None:
    base, experts = gr.Textbox("", label="base"), gr.Textbox(AUTO, label="experts")
    names, answer = gr.JSON(label="styles"), gr.JSON(label="settings")

    def styles(base: str = "", experts: str = AUTO) -> list[str]:
        """List the styles of a base and its experts; an empty list: any words.

        Args:
            base: one that the server offers; empty: its default.
            experts: "bundled", "none", or a name that the server offers.

        Returns:
            Names of styles.
        """
        return engine.styles(base, experts)

    _endpoint(styles, [base, experts], [names], queue=False)

    file = gr.File(label="file")

    def settings(file: str) -> dict[str, Any]:
        """Read the settings of an edit from its PNG or JSON.

        Args:
            file: written by RegionRoute.

        Returns:
            The settings, in the form of the options of `edit`.
        """
        return read_settings(as_path(file, "the file")).model_dump()

    _endpoint(settings, [file], [answer], queue=False)

    photo, mask = _image("photo"), _image("mask")
    x, y = gr.Number(label="x", precision=0), gr.Number(label="y", precision=0)

    def segment(photo: str, x: int, y: int) -> str:
        """Cut out the object at a point of a photo.

        Args:
            photo: the image.
            x: column of the point in pixels.
            y: row of the point in pixels.

        Returns:
            A mask of the photo's size, white on the object.
        """
        path = as_path(photo, "the photo")
        size = check_upload(path, engine.settings)
        where = engine.settings.segmenter, engine.settings.device or "cpu"
        found, _ = engine.device.do(lambda: clicked_mask(path, (x, y), size, *where))
        out = engine.new_folder() / "mask.png"
        write_image(out, found[None])
        return str(out)

    _endpoint(segment, [photo, x, y], [mask], **DEVICE)

    source, edited, target = _image("source"), _image("edited"), _image("target")

    def score(
        source: str, edited: str, mask: str, target: str | None = None
    ) -> list[tuple[str, str, str]]:
        """Measure an edit by pixel metrics.

        Args:
            source: the unedited image.
            edited: the edit, of the same size.
            mask: white on the object.
            target: what the edit should have been, if known.

        Returns:
            Name, value and meaning of each metric.
        """
        files = {"the source": source, "the edit": edited, "the mask": mask}
        paths = [as_path(file, name) for name, file in files.items()]
        paths += [Path(target)] if target else []
        for path in paths:
            check_upload(path, engine.settings)
        return engine.device.do(lambda: score_edit(*paths))

    _endpoint(score, [source, edited, mask, target], [gr.JSON(label="scores")], **DEVICE)


def _data_endpoints(engine: Engine) -> None:
    name, rows = gr.Textbox(label="data_set"), gr.JSON(label="samples")
    ids, excluded = gr.JSON(label="ids"), gr.Checkbox(True, label="excluded")
    word, style = gr.Textbox(ANY, label="object"), gr.Textbox(ANY, label="style")

    def samples(data_set: str, object: str = ANY, style: str = ANY) -> list[dict[str, Any]]:
        """List the samples of a data set of `regionroute label`.

        Args:
            data_set: its folder, below one that the server allows.
            object: only samples of this word; "all" for every one.
            style: only samples in this style; "all" for every one.

        Returns:
            Id, caption and whether it is excluded, for each sample.
        """
        data = open_data_set(data_set, engine.settings.data)
        out = data.excluded
        return [
            {"id": sample.id, "caption": caption(sample, out), "excluded": sample.id in out}
            for sample in data.select(Filter(object, style))
        ]

    _endpoint(samples, [name, word, style], [rows])

    def exclude(data_set: str, ids: list[str], excluded: bool = True) -> list[str]:
        """Exclude samples from a data set, or keep them again; the next label run honours it.

        Args:
            data_set: its folder, below one that the server allows.
            ids: of the samples.
            excluded: true to exclude, false to keep.

        Returns:
            The ids of all excluded samples.
        """
        data = open_data_set(data_set, engine.settings.data)
        data.exclude(ids, excluded)
        return sorted(data.excluded)

    _endpoint(exclude, [name, ids, excluded], [rows])


def _endpoint(
    function: Callable[..., Any], given: Sequence[Any], answers: Sequence[Any], **how: Any
) -> None:
    """Serve a function under its name; user mistakes become errors with one sentence."""

    @functools.wraps(function)
    def run(*args: Any, **named: Any) -> Any:
        try:
            return function(*args, **named)
        except (UserError, Cancelled) as error:
            raise gr.Error(sentence(error), print_exception=False) from None

    gr.Button(visible=False).click(
        run, list(given), list(answers), api_name=function.__name__, show_progress="hidden", **how
    )


def _image(label: str) -> gr.Image:
    return path_image(label, visible=False)


def _job(
    engine: Engine, photo: str, objects: Any, styles: Any, options: Any, style_image: str | None,
    region_masks: Sequence[str] | None,
) -> EditJob:  # fmt: skip
    """The job of a request, its parts checked.

    Raises:
        UserError: a part of another form, or an unknown option.
    """
    path = as_path(photo, "the photo")
    size = check_upload(path, engine.settings)
    for name, words in (("objects", objects), ("styles", styles or [])):
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise UserError(f'{name}: give a list of texts, such as ["cat"]')
    masks = [Path(file) for file in region_masks or ()]
    for file in masks:
        check_upload(file, engine.settings)
    return EditJob(
        photo=path,
        objects=tuple(objects),
        styles=() if style_image else tuple(styles or ()),
        style_image=Path(style_image) if style_image else None,
        options=_options(options),
        regions=tuple(read_soft_mask(file, size)[0] for file in masks),
    )


def _options(given: Any) -> JobOptions:
    """The options of a request; None means the default.

    Raises:
        UserError: an unknown option, or a value of another type.
    """
    if not isinstance(given, dict | None):
        raise UserError('options: give an object such as {"seed": 3}')
    found = {key: value for key, value in (given or {}).items() if value is not None}
    try:
        return JobOptions.model_validate(found)
    except ValidationError as error:
        problem = error.errors()[0]
    name = problem["loc"][0]
    if problem["type"] == "extra_forbidden":
        known = ", ".join(JobOptions.model_fields)
        raise UserError(f"option {name!r} is unknown: there are {known}")
    raise UserError(f"option {name}: {problem['msg']}, got {problem['input']!r}")


def _answer(record: EditRecord) -> tuple[str, str | None, list[str], dict[str, Any]]:
    return (
        str(record.image),
        None if record.map is None else str(record.map),
        [str(path) for path in record.regions],
        record.metadata,
    )
