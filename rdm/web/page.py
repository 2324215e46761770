"""The page: a header and one tab for each of the modules that has a function ``tab``."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

import gradio as gr

from rdm.web import create
from rdm.web.studio import Studio

TITLE = "Retrieval-augmented diffusion"
TABS: dict[str, Callable[[Studio], object]] = {"Create": create.tab}
"""Title of each tab -> the function that builds it within the open ``gr.Tab``."""


def page(studio: Studio) -> gr.Blocks:
    """Returns the page of a studio, to be launched by :mod:`rdm.web.server`."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(600, 3600)) as blocks:
        gr.HTML(header(studio))
        for title, tab in TABS.items():
            with gr.Tab(title):
                tab(studio)
    return blocks


def header(studio: Studio) -> str:
    """Returns the HTML of the page's head: its title, the model and its databases."""
    sizes = (f"{name} ({len(each.retriever.database):,} pictures)" for name, each in studio.pipelines.items())
    model = studio.pipeline().path.parent
    words = f"{escape(str(model))} with {escape(', '.join(sizes))}"
    return f'<header class="head"><h1>{TITLE}</h1><p>{words}</p></header>'
