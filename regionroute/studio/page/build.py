"""The page: its tabs, its look, and the endpoints behind it."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import gradio as gr

from regionroute.studio.engine import Engine
from regionroute.studio.page.api import endpoints
from regionroute.studio.page.compare_tab import compare_tab
from regionroute.studio.page.data_tab import data_tab
from regionroute.studio.page.edit_tab import edit_tab
from regionroute.studio.page.score_tab import score_tab

CSS = Path(__file__).with_name("studio.css")
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
TAGLINE = "Name an object, choose a style: everything else stays as it is."


def build_page(engine: Engine) -> gr.Blocks:
    """The page as a Gradio app that is not running yet."""
    title = engine.settings.title
    with gr.Blocks(title=title, analytics_enabled=False, fill_width=True) as page:
        gr.HTML(
            f'<header class="rr-header"><h1>{html.escape(title)}</h1><p>{TAGLINE}</p></header>',
            padding=False,
        )
        with gr.Tabs(selected="edit") as tabs:
            with gr.Tab("Edit", id="edit"):
                edit = edit_tab(engine)
            with gr.Tab("Compare", id="compare"):
                compare_tab(engine, edit, tabs)
            with gr.Tab("Score", id="score"):
                score_tab(engine, edit)
            with gr.Tab("Data", id="data"):
                data_tab(engine)
        endpoints(engine)
    return page


def theme() -> Any:
    """Fonts of the system: the page loads nothing from other servers."""
    soft = gr.themes.Soft(
        primary_hue="orange", neutral_hue="slate", font=list(FONTS), font_mono=list(MONO)
    )
    plain: dict[str, Any] = {}
    for part in ("block_title", "block_label"):
        for mode in ("", "_dark"):
            plain |= {
                f"{part}_background_fill{mode}": "*block_background_fill",
                f"{part}_text_color{mode}": "*body_text_color",
            }
    return soft.set(block_title_padding="0", block_title_text_weight="600", **plain)
