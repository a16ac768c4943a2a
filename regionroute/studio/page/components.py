"""Gradio's parts as the studio uses them: image inputs that stay files, handlers that report."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from regionroute.errors import UserError
from regionroute.studio.engine import Cancelled
from regionroute.studio.views import message

DEVICE = {"concurrency_id": "device", "concurrency_limit": 1}  # one job at a time
HEAVY: dict[str, Any] = {**DEVICE, "api_visibility": "private"}
LIGHT: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}

MOST_BLOBS = 32  # a few MB each


def path_image(label: str, **how: Any) -> gr.Image:
    """An image input that gives the uploaded file as it is, unopened.

    Gradio's own opens and converts it, which fails without a word on damaged files, has no limit
    of pixels below Pillow's, and loses what an edit keeps, such as a colour profile.

    Args:
        label: of the input.
        how: as of `gradio.Image`.
    """
    given: dict[str, Any] = {
        "type": "filepath", "image_mode": None, "sources": ["upload", "clipboard"],
        "buttons": ["fullscreen"], "label": label,
    }  # fmt: skip
    image = gr.Image(**given | how)
    image.preprocess = _uploaded  # a subclass would make Gradio write a .pyi file next to it
    return image


def _uploaded(payload: Any) -> str | None:
    """The file of an upload; Gradio has checked that it is one.

    Raises:
        gr.Error: an image in another form than a file.
    """
    if payload is None:
        return None
    if not payload.path or (payload.url or "").startswith("data:"):
        raise gr.Error("Upload the image as a file.", print_exception=False)
    return str(payload.path)


def brush_editor(label: str, **how: Any) -> gr.ImageEditor:
    """A brush editor that loses no layer; arguments as of `gradio.ImageEditor`."""
    editor = gr.ImageEditor(label=label, **how)
    editor.blob_storage = Blobs()
    return editor


class Blobs(OrderedDict[str, Any]):
    """What brush editors sent and no handler has read yet, the newest `MOST_BLOBS` of it.

    The browser sends photo and layers of an editor in requests of their own, under one key, and
    Gradio serves these in threads. Each looks for the entry of the key and else begins a new one,
    so that with a plain dict the last one wins and a layer is lost: in place of the region and the
    stroke, the stroke alone. And what no handler reads would stay in memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()

    def get(self, key: str, default: Any = None) -> Any:
        """The entry of a key; if there is none, the default becomes it, unless that is None."""
        with self._lock:
            if default is None:
                return super().get(key)
            found = self.setdefault(key, default)
            while len(self) > MOST_BLOBS:
                self.popitem(last=False)
            return found


def reported(output: Any) -> Callable[[Any], Any]:
    """Decorate a handler: user mistakes become a message in `output`, all else stays as it is.

    Args:
        output: the HTML component for messages.
    """

    def decorate(handler: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(handler)
        def run(*args: Any, **named: Any) -> Any:
            try:
                return handler(*args, **named)
            except UserError as error:
                return {output: gr.update(value=message("error", sentence(error)), visible=True)}
            except Cancelled as stop:
                return {output: gr.update(value=message("hint", str(stop)), visible=True)}

        return run

    return decorate


def sentence(error: Exception) -> str:
    """An error's text as a sentence."""
    text = str(error)
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!")) else ".")


def as_path(value: str | None, what: str) -> Path:
    """The file of an input.

    Raises:
        UserError: it is empty.
    """
    if not value:
        raise UserError(f"{what} is missing: choose an image first")
    return Path(value)
