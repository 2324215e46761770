"""The tab Create: texts, classes, a picture or popular rows become images beside their neighbours, the switches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from rdm.retrieval.classes import class_names
from rdm.sampling.settings import OPTIONS, Settings
from rdm.sampling.values import TOP_M
from rdm.web import uploads
from rdm.web.area import Area, area, drawing
from rdm.web.asking import WAYS, Ask, jobs
from rdm.web.options import fields, values
from rdm.web.pieces import folded, place_field, seed_field, session_of, whole
from rdm.web.studio import Studio

LABELS = {"text": "Text", "class": "Class", "picture": "Picture", "popular": "Popular"}
SHOWN = ("steps", "scale")  # settings that are not folded away


@dataclass(frozen=True, eq=False)
class Fields:
    """The input fields of the tab, by what they are in :class:`Ask`, those of settings apart; and the buttons."""

    asked: dict[str, Component]
    settings: dict[str, Component]
    text: gr.Textbox
    draw: gr.Button
    stop: gr.Button

    def all(self) -> set[Component]:
        """Returns all fields."""
        return {*self.asked.values(), *self.settings.values()}

    def ask(self, studio: Studio, given: dict[Component, Any]) -> Ask:
        """Returns what the filled fields ask for."""
        filled = {name: given[component] for name, component in self.asked.items()}
        way, text, picture = filled.pop("way"), filled.pop("text"), filled.pop("picture")
        named, n = filled.pop("class"), filled.pop("n")
        words = (text or "").splitlines() if way == "text" else list(named or []) if way == "class" else []
        opened = None
        if way == "picture" and picture:
            opened = uploads.opened(picture, studio.limits, studio.folder)
        settings = values({name: given[component] for name, component in self.settings.items()})
        return Ask(way=way, words=words, picture=opened, n=n or 1, settings=settings, **filled)


def input_fields(studio: Studio) -> Fields:
    """Builds the input fields, with the buttons below the first of them."""
    pipeline, limits = studio.pipeline(), studio.limits
    way = gr.Radio([(LABELS[way], way) for way in WAYS], value="text", show_label=False, elem_classes="ways")
    text = gr.Textbox("", label="Text", placeholder="a red guitar", info="Each line is a picture.", lines=2)
    classes = class_names(pipeline.retriever.database)
    named = gr.Dropdown(classes, multiselect=True, label="Classes", visible=False)
    picture = gr.Image(type="filepath", image_mode=None, label="Picture", visible=False, height=160, sources=["upload"])
    share = "The most popular rows, from which queries are drawn."
    top_m = gr.Slider(0.01, 1, TOP_M, label="Share of the rows", info=share, visible=False)
    shown = {"text": text, "class": named, "picture": picture, "popular": top_m}
    way.change(
        lambda way: [gr.update(visible=name == way) for name in shown],
        way,
        list(shown.values()),
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    with gr.Row(elem_classes="go"):
        draw = gr.Button("Draw", variant="primary", min_width=100)
        stop = gr.Button("Stop", min_width=70, scale=0)
    asked = {
        "way": way,
        "text": text,
        "class": named,
        "picture": picture,
        "top_m": top_m,
        "places": place_field(studio),
    }
    usual = Settings().for_model(pipeline.model)
    settings: dict[str, Component] = {}
    with gr.Row(elem_classes="numbers"):
        asked |= {"n": whole("Images", 1, limits.images), "k": whole("Neighbours", pipeline.k, limits.neighbours)}
        asked["seed"] = seed_field()
        if pipeline.model.kind in OPTIONS["steps"].kinds:
            settings["steps"] = whole("Steps", usual.steps, limits.steps)
        settings["scale"] = gr.Number(usual.scale, label="Scale", step=0.5, min_width=80)
    with folded():
        seen = [("its neighbours", "neighbours"), ("the query and its neighbours", "both"), ("the query alone", "text")]
        asked["tokens"] = gr.Dropdown(seen, value="neighbours", label="what the model sees of the query")
        moved = "a text that the query of texts is moved away from"
        asked["negative"] = gr.Textbox("", label="negative", info=moved, max_lines=1)
        found = [("by its sentence", "text"), ("by its label", "label")]
        asked["by"] = gr.Dropdown(found, value="text", label="how the rows of a class are found")
        settings |= fields(pipeline.model.kind, without=SHOWN)
    return Fields(asked, settings, text, draw, stop)


def tab(studio: Studio) -> Area:
    """Builds the tab within the open ``gr.Tab``, and returns the area of its images."""
    with gr.Row(elem_classes="bench"):
        with gr.Column(scale=0, min_width=330, elem_classes="ask"):
            given = input_fields(studio)
        with gr.Column(scale=1, min_width=320):
            built = area(studio)

    def create(filled: dict[Component, Any], request: gr.Request) -> Iterator[Any]:
        yield from built.draw(lambda: jobs(studio, given.ask(studio, filled)), filled[built.state], session_of(request))

    drawing(built, create, [given.draw.click, given.text.submit], given.all(), given.stop)
    return built
