"""The tab Create: texts, classes, a picture or popular rows become images beside their neighbours, the switches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr
from gradio.components import Component

from rdm.retrieval.classes import class_names
from rdm.sampling.values import TOP_M
from rdm.web import uploads
from rdm.web.area import Area, area, drawing
from rdm.web.asking import WAYS, Ask, jobs
from rdm.web.options import Form, fields
from rdm.web.pieces import SHOWN, begin_and_end, folded, numbers, place_field, session_of
from rdm.web.studio import Studio

LABELS = {"text": "Text", "class": "Class", "picture": "Picture", "popular": "Popular"}


def form(studio: Studio) -> Form:
    """Builds the input fields, with the buttons below the first of them."""
    pipeline = studio.pipeline()
    way = gr.Radio([(LABELS[way], way) for way in WAYS], value="text", show_label=False, elem_classes="ways")
    text = gr.Textbox("", label="Text", placeholder="a red guitar", info="Each line is a picture.", lines=2)
    classes = class_names(pipeline.retriever.database)
    named = gr.Dropdown(classes, multiselect=True, label="Classes", visible=False)
    picture = gr.Image(type="filepath", image_mode=None, label="Picture", visible=False, height=160, sources=["upload"])
    share = "The most popular rows, from which queries are drawn."
    top_m = gr.Slider(0.01, 1, TOP_M, label="Share of the rows", info=share, visible=False)
    shown: dict[str, Component] = {"text": text, "class": named, "picture": picture, "popular": top_m}
    way.change(
        lambda way: [gr.update(visible=name == way) for name in shown],
        way,
        list(shown.values()),
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    draw, stop = begin_and_end()
    asked = {"way": way, "text": text, "class": named, "picture": picture, "top_m": top_m}
    asked["places"] = place_field(studio)
    with gr.Row(elem_classes="numbers"):
        counts, settings = numbers(studio)
    asked |= counts
    with folded():
        seen = [("its neighbours", "neighbours"), ("the query and its neighbours", "both"), ("the query alone", "text")]
        asked["tokens"] = gr.Dropdown(seen, value="neighbours", label="what the model sees of the query")
        moved = "a text that the query of texts is moved away from"
        asked["negative"] = gr.Textbox("", label="negative", info=moved, max_lines=1)
        found = [("by its sentence", "text"), ("by its label", "label")]
        asked["by"] = gr.Dropdown(found, value="text", label="how the rows of a class are found")
        settings |= fields(pipeline.model.kind, without=SHOWN)
    return Form(asked, settings, draw, stop)


def ask(studio: Studio, filled: dict[str, Any]) -> Ask:
    """Returns what a filled form asks for."""
    way, text, named, file = (filled.pop(name) for name in ("way", "text", "class", "picture"))
    words = {"text": (text or "").splitlines(), "class": list(named or [])}.get(way, [])
    picture = uploads.opened(file, studio.limits, studio.folder) if way == "picture" and file else None
    return Ask(way=way, words=words, picture=picture, **{**filled, "n": filled["n"] or 1})


def tab(studio: Studio) -> Area:
    """Builds the tab within the open ``gr.Tab``, and returns the area of its images."""
    with gr.Row(elem_classes="bench"):
        with gr.Column(scale=0, min_width=330, elem_classes="ask"):
            given = form(studio)
        with gr.Column(scale=1, min_width=320):
            built = area(studio)

    def create(filled: dict[Component, Any], request: gr.Request) -> Iterator[Any]:
        asked = ask(studio, given.filled(filled))
        yield from built.draw(lambda: jobs(studio, asked), filled[built.state], session_of(request))

    drawing(built, create, [given.draw.click, given.asked["text"].submit], given.fields(), given.stop)
    return built
