"""The tab Between: a strip of images that leads from one text or picture to another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr
from gradio.components import Component

from rdm.web import markup, uploads
from rdm.web.area import Area, area, drawing
from rdm.web.asking import Between, between
from rdm.web.options import Form, fields
from rdm.web.pieces import SHOWN, begin_and_end, folded, numbers, place_field, session_of
from rdm.web.studio import Studio

IMAGES = 7


def tab(studio: Studio) -> Area:
    """Builds the tab within the open ``gr.Tab``, and returns the area of its images."""
    with gr.Row(elem_classes="bench"):
        with gr.Column(scale=0, min_width=330, elem_classes="ask"):
            texts, pictures = {}, {}
            for name, example in (("start", "a cat face"), ("end", "a red heart")):
                label = "From" if name == "start" else "To"
                texts[name] = gr.Textbox("", label=label, placeholder=example, max_lines=1)
                with gr.Accordion(f"{label} a picture", open=False):
                    pictures[name] = gr.Image(
                        type="filepath", image_mode=None, show_label=False, height=120, sources=["upload"]
                    )
            draw, stop = begin_and_end()
            place = place_field(studio, several=False)
            with gr.Row(elem_classes="numbers"):
                counts, settings = numbers(studio, IMAGES, 2)
            with folded():
                settings |= fields(studio.pipeline().model.kind, without=(*SHOWN, "retrieve_below"))
        given = Form({"place": place, **counts}, settings, draw, stop)
        with gr.Column(scale=1, min_width=320):
            built = area(studio, markup.strip)

    def ask(filled: dict[Component, Any]) -> Between:
        ends: dict[str, Any] = {}
        for name in texts:
            file = filled[pictures[name]]
            ends[name] = uploads.opened(file, studio.limits, studio.folder) if file else filled[texts[name]] or ""
        return Between(**ends, **given.filled(filled))

    def create(filled: dict[Component, Any], request: gr.Request) -> Iterator[Any]:
        yield from built.draw(lambda: [between(studio, ask(filled))], filled[built.state], session_of(request))

    begin = [draw.click, *(text.submit for text in texts.values())]
    drawing(built, create, begin, {*texts.values(), *pictures.values(), *given.fields()}, stop)
    return built
