"""What the page shows of an edit: messages, the attention overlay, thumbnails."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from regionroute.data.images import open_image, to_pil
from regionroute.studio.jobs import EditRecord
from regionroute.studio.regions import PAINT, small_photo

Kind = Literal["hint", "done", "warning", "error"]
OVERLAY_SIDE, THUMBNAIL_SIDE = 768, 256  # pixels of the longer side
_SIGNS = {"hint": "", "done": "✓", "warning": "⚠", "error": "✕"}


def message(kind: Kind, sentences: str | Sequence[str]) -> str:
    """A message; errors and warnings are announced at once by screen readers.

    Args:
        kind: decides colour and sign.
        sentences: plain text, one paragraph each.
    """
    lines = [sentences] if isinstance(sentences, str) else sentences
    paragraphs = "".join(f"<p>{html.escape(line)}</p>" for line in lines)
    role = "alert" if kind in ("warning", "error") else "status"
    sign = f'<span aria-hidden="true">{_SIGNS[kind]}</span>' if _SIGNS[kind] else ""
    return f'<div class="rr-message rr-{kind}" role="{role}">{sign}<div>{paragraphs}</div></div>'


def result_message(record: EditRecord) -> str:
    """How the edit went: its warnings, or that it is done."""
    done = f"Done in {record.seconds:.1f} s: {record.caption}."
    warnings = record.metadata.get("warnings") or []
    if not warnings:
        return message("done", done)
    advice = "Try another word for the object, or show it under “Region”."
    if record.metadata.get("left_unchanged"):
        advice += " Advanced has a switch to edit all the same."
    return message("warning", [f"{_sentence(text)}" for text in warnings] + [advice, done])


def overlay(record: EditRecord) -> str:
    """The photo with the attention map over it; the page sets the map's opacity."""
    if record.map is None:
        return message("hint", "This edit has no attention map.")
    photo = small_photo(record.photo, OVERLAY_SIDE)
    with Image.open(record.map) as image:
        grey = np.asarray(image.convert("L").resize(photo.size, Image.Resampling.BILINEAR))
    paint = np.zeros((*grey.shape, 4), dtype=np.uint8)
    paint[..., :3], paint[..., 3] = PAINT, grey
    words = html.escape(record.caption)
    return (
        '<figure class="rr-overlay">'
        f'<img src="{_data_uri(photo, "JPEG")}" alt="The photo">'
        f'<img class="rr-map" src="{_data_uri(Image.fromarray(paint), "PNG")}" '
        f'alt="Attention map of {words}">'
        "</figure>"
    )


def thumbnail(path: Path) -> Image.Image:
    """A small copy of an image file."""
    image = to_pil(open_image(path).rgb)
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    return image


def table(rows: Sequence[Sequence[str]], headings: Sequence[str]) -> str:
    """An HTML table of plain texts."""
    head = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in headings)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        '<div class="rr-table" tabindex="0" role="region" aria-label="Table">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _data_uri(image: Image.Image, form: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, form)
    text = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{form.lower()};base64,{text}"
