"""The page: a header and one tab for each of the modules that has a function ``tab``."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

import gradio as gr

from rdm.web import between, create, database, edit, inspect
from rdm.web.endpoints import endpoints
from rdm.web.pieces import session_of
from rdm.web.studio import Studio

EDIT = "edit"  # the id of the tab
TITLE = "Retrieval-augmented diffusion"
TABS: dict[str, Callable[[Studio], object]] = {"Database": database.tab, "Inspect": inspect.tab}
"""Title of each further tab -> the function that builds it within the open ``gr.Tab``."""


def page(studio: Studio) -> gr.Blocks:
    """Returns the page of a studio, to be launched by :mod:`rdm.web.server`."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(600, 3600)) as blocks:
        gr.HTML(header(studio))
        with gr.Tabs() as tabs:
            with gr.Tab("Create"):
                areas = [create.tab(studio)]
            if studio.pipeline().edits:  # others cannot edit
                with gr.Tab("Edit", id=EDIT):
                    edits, bench = edit.tab(studio)
            with gr.Tab("Between"):
                areas.append(between.tab(studio))
            for title, tab in TABS.items():
                with gr.Tab(title):
                    tab(studio)
        if studio.pipeline().edits:
            for area in (*areas, edits):
                edit.take_over(studio, area, bench, tabs, EDIT)
        endpoints(studio)
        blocks.load(studio.warm_up, queue=False, show_progress="hidden", api_visibility="private")
        blocks.unload(leave(studio))
    return blocks


def leave(studio: Studio) -> Callable[[gr.Request], None]:
    """Returns a function that ends what is drawn for a user who leaves the page."""

    def left(request: gr.Request) -> None:
        studio.stop(session_of(request))

    return left


def header(studio: Studio) -> str:
    """Returns the HTML of the page's head: its title, the model and its databases."""
    sizes = (f"{name} ({len(each.retriever.database):,} pictures)" for name, each in studio.pipelines.items())
    model = studio.pipeline().path.parent
    words = f"{escape(str(model))} with {escape(', '.join(sizes))}"
    return f'<header class="head"><h1>{TITLE}</h1><p>{words}</p></header>'
