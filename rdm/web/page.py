"""The page: a header and one tab for each of the modules that has a function ``tab``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from html import escape
from typing import Any

import gradio as gr

from rdm.web import between, create, database, edit, inspect
from rdm.web.endpoints import endpoints
from rdm.web.pieces import session_of
from rdm.web.studio import Studio

EDIT = "edit"  # the id of the tab
TITLE = "Retrieval-augmented diffusion"


def page(studio: Studio) -> gr.Blocks:
    """Returns the page of a studio, to be launched by :mod:`rdm.web.server`."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(600, 3600)) as blocks:
        head = gr.HTML(header(studio))
        with gr.Tabs() as tabs:
            with gr.Tab("Create"):
                areas = [create.tab(studio)]
            if studio.pipeline().edits:  # others cannot edit
                with gr.Tab("Edit", id=EDIT):
                    edits, bench = edit.tab(studio)
            with gr.Tab("Between"):
                areas.append(between.tab(studio))
            with gr.Tab("Database"):
                changes = database.tab(studio)
            with gr.Tab("Inspect"):
                inspect.tab(studio)
        if studio.pipeline().edits:
            for area in (*areas, edits):
                edit.take_over(studio, area, bench, tabs, EDIT)
        endpoints(studio)
        quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        for event in (blocks.load, *(change.success for change in changes)):
            event(partial(header, studio), None, head, **quiet)
        blocks.load(studio.warm_up, **quiet)
        blocks.unload(leave(studio))
    return blocks


def leave(studio: Studio) -> Callable[[gr.Request], None]:
    """Returns a function that ends what is drawn for a user who leaves the page."""

    def left(request: gr.Request) -> None:
        studio.stop(session_of(request))

    return left


def header(studio: Studio) -> str:
    """Returns the HTML of the page's head: its title, the model and its databases."""
    counts = {name: each.retriever.database.living_count for name, each in studio.pipelines.items()}
    sizes = (f"{name} ({count:,} pictures)" for name, count in counts.items())
    model = studio.pipeline().path.parent
    words = f"{escape(str(model))} with {escape(', '.join(sizes))}"
    return f'<header class="head"><h1>{TITLE}</h1><p>{words}</p></header>'
