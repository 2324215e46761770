"""The page: a header and one tab for each of the modules that has a function ``tab``."""

from __future__ import annotations

import gradio as gr

from rdm.web import create
from rdm.web.studio import Studio

TITLE = "Retrieval-augmented diffusion"
TABS = {"Create": create.tab}
"""Title of each tab -> the function that builds it within the open ``gr.Tab``."""


def page(studio: Studio) -> gr.Blocks:
    """Returns the page of a studio, to be launched by :mod:`rdm.web.server`."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(600, 3600)) as blocks:
        gr.Markdown(f"# {TITLE}")
        for title, tab in TABS.items():
            with gr.Tab(title):
                tab(studio)
    return blocks
