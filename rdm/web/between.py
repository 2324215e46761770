"""The tab Between: a strip of images that leads from one text or picture to another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr
from gradio.components import Component

from rdm.sampling.settings import OPTIONS, Settings
from rdm.web import markup, uploads
from rdm.web.area import Area, area, drawing
from rdm.web.asking import Between, between
from rdm.web.options import fields, values
from rdm.web.pieces import folded, place_field, seed_field, session_of, whole
from rdm.web.studio import Studio

IMAGES = 7
SHOWN = ("steps", "scale")


def tab(studio: Studio) -> Area:
    """Builds the tab within the open ``gr.Tab``, and returns the area of its images."""
    pipeline, limits = studio.pipeline(), studio.limits
    asked: dict[str, Component] = {}
    settings: dict[str, Component] = {}
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
            with gr.Row(elem_classes="go"):
                draw = gr.Button("Draw", variant="primary", min_width=100)
                stop = gr.Button("Stop", min_width=70, scale=0)
            asked["place"] = place_field(studio, several=False)
            usual = Settings().for_model(pipeline.model)
            with gr.Row(elem_classes="numbers"):
                asked["n"] = whole("Images", min(IMAGES, limits.images), limits.images, 2)
                asked["k"] = whole("Neighbours", pipeline.k, limits.neighbours)
                if pipeline.model.kind in OPTIONS["steps"].kinds:
                    settings["steps"] = whole("Steps", usual.steps, limits.steps)
                settings["scale"] = gr.Number(usual.scale, label="Scale", step=0.5, min_width=80)
                asked["seed"] = seed_field()
            with folded():
                settings |= fields(pipeline.model.kind, without=SHOWN)
        with gr.Column(scale=1, min_width=320):
            built = area(studio, markup.strip)

    def ask(filled: dict[Component, Any]) -> Between:
        ends: dict[str, Any] = {}
        for name in texts:
            file = filled[pictures[name]]
            ends[name] = uploads.opened(file, limits, studio.folder) if file else filled[texts[name]] or ""
        chosen = values({name: filled[component] for name, component in settings.items()})
        return Between(**ends, settings=chosen, **{name: filled[component] for name, component in asked.items()})

    def create(filled: dict[Component, Any], request: gr.Request) -> Iterator[Any]:
        yield from built.draw(lambda: [between(studio, ask(filled))], filled[built.state], session_of(request))

    given = {*texts.values(), *pictures.values(), *asked.values(), *settings.values()}
    drawing(built, create, [draw.click, *(text.submit for text in texts.values())], given, stop)
    return built
