"""Gradio's parts as the studio uses them."""

from __future__ import annotations

import io
import threading
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the studio needs gradio")

from gradio.components.image_editor import AcceptBlobs, EditorData

from regionroute.studio.page.components import MOST_BLOBS, Blobs, brush_editor


def layer(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (4, 3), (value, 0, 0, 255)).save(buffer, "PNG")
    return buffer.getvalue()


def send(editor: Any, key: str, index: int, value: int) -> None:
    """As the browser sends a layer."""
    data = {"type": "layer", "index": str(index), "id": key, "file": b""}
    editor.accept_blobs(
        AcceptBlobs.model_construct(data=data, files=[("file", layer(value))])  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("storage", [Blobs, dict])
def test_layers_that_come_at_once_are_all_kept(storage: Any) -> None:
    """With a dict, Gradio's own, one of them is lost: the day it is not, `Blobs` may go."""
    barrier = threading.Barrier(2)

    class AtOnce(storage):  # type: ignore[misc]
        """Both requests have looked for the entry before either goes on."""

        def get(self, key: str, default: Any = None) -> Any:
            found = super().get(key, default)
            if default is not None:
                barrier.wait(30)
            return found

    editor = brush_editor("", type="numpy", image_mode="RGBA")
    editor.blob_storage = AtOnce()
    threads = [
        threading.Thread(target=send, args=(editor, "a", index, 100 + index)) for index in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = editor.preprocess(EditorData(id="a"))
    layers = [int(np.asarray(one)[0, 0, 0]) for one in found["layers"]]
    assert len(layers) == (2 if storage is Blobs else 1)
    assert editor.preprocess(EditorData(id="a"))["layers"] == []  # read once


def test_what_no_handler_reads_does_not_stay() -> None:
    editor = brush_editor("", type="numpy", image_mode="RGBA")
    for number in range(MOST_BLOBS + 5):
        send(editor, str(number), 0, number)
    assert len(editor.blob_storage) == MOST_BLOBS
    assert editor.preprocess(EditorData(id="0"))["layers"] == []
    newest = editor.preprocess(EditorData(id=str(MOST_BLOBS + 4)))["layers"][0]
    assert int(np.asarray(newest)[0, 0, 0]) == MOST_BLOBS + 4
