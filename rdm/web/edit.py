"""The tab Edit: a picture is repainted where the user paints, extended, or drawn anew by a strength."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component
from PIL import Image

from rdm.sampling.settings import EDIT_SAMPLER
from rdm.sampling.values import REPEATS
from rdm.web import markup, uploads
from rdm.web.answers import answering
from rdm.web.area import Area, area, drawing
from rdm.web.drawing import png_file
from rdm.web.editing import WAYS, Edit, cropped, job, mask_of, side_of
from rdm.web.options import Form, fields
from rdm.web.pieces import PAINT, SHOWN, begin_and_end, folded, numbers, place_field, session_of, whole
from rdm.web.studio import Studio

LABELS = {"inpaint": "Repaint", "outpaint": "Extend", "vary": "Vary", "invert": "Invert"}
LIFE = 3600  # seconds that the picture of a session is kept
STRENGTHS = {"inpaint": 1.0, "vary": 0.6}  # where a strength is asked for, and what it begins with
EDGES = ("left", "top", "right", "bottom")


@dataclass(frozen=True, eq=False)
class Bench:
    """The picture that is edited, on the page.

    Attributes:
        picture: it, as a PIL image.
        paint: what is painted on it, a PNG file in a data URL; empty if nothing is.
        canvas: what the user paints on.
        side: the field of the side of the square that it is cropped to.
    """

    picture: gr.State
    paint: gr.State
    canvas: gr.HTML
    side: gr.Number

    @property
    def outputs(self) -> list[Any]:
        """What :meth:`put` returns the values of."""
        return [self.picture, self.paint, self.canvas]

    def put(self, picture: Image.Image | None, side: int | None, studio: Studio) -> tuple[Any, ...]:
        """Returns the values for another picture."""
        side = side or side_of(studio)
        studio.limits.check(side=side)
        return picture, "", markup.canvas(None if picture is None else png_file(cropped(picture, side)), side)


@dataclass(frozen=True, eq=False)
class EditForm(Form):
    """The input fields of the tab; also those that only some ways of editing have.

    Attributes:
        upload: the picture.
        sides: what holds the fields ``left``, ``top``, ``right`` and ``bottom``.
    """

    upload: gr.Image
    sides: gr.Row


def form(studio: Studio) -> EditForm:
    """Builds the input fields."""
    limits = studio.limits
    way = gr.Radio([(LABELS[way], way) for way in WAYS], value="inpaint", show_label=False, elem_classes="ways")
    upload = gr.Image(type="filepath", image_mode=None, label="Picture", height=120, sources=["upload"])
    about = "Without one, the model sees the neighbours of the picture."
    prompt = gr.Textbox("", label="Text", placeholder="a dog face", info=about, max_lines=1)
    strength = gr.Slider(0, 1, STRENGTHS["inpaint"], step=0.05, label="Strength")
    with gr.Row(visible=False, elem_classes="numbers four") as sides:
        edges = {name: whole(name.capitalize(), 0, limits.side, 0) for name in EDGES}
    draw, stop = begin_and_end()
    asked: dict[str, Any] = {"way": way, "prompt": prompt, "strength": strength, **edges}
    asked["place"] = place_field(studio, several=False)
    with gr.Row(elem_classes="numbers"):
        counts, settings = numbers(studio, sampler=EDIT_SAMPLER)
        asked |= {**counts, "side": whole("Side", side_of(studio), limits.side)}
    with folded():
        again = "with a painted or extended picture: how often each step is sampled, so that new and old parts fit"
        asked["repeats"] = gr.Number(REPEATS, label="repeats", info=again, precision=0, minimum=1)
        settings |= fields(studio.pipeline().model.kind, without=(*SHOWN, "height", "width"))
    return EditForm(asked, settings, draw, stop, upload, sides)


def tab(studio: Studio) -> tuple[Area, Bench]:
    """Builds the tab within the open ``gr.Tab``, and returns the area of its images and the picture that is edited."""
    limits = studio.limits
    with gr.Row(elem_classes="bench"):
        with gr.Column(scale=0, min_width=330, elem_classes="ask"):
            given = form(studio)
        with gr.Column(scale=1, min_width=280):
            canvas = gr.HTML(markup.canvas(None, 1), js_on_load=PAINT)
            picture, paint = gr.State(None, time_to_live=LIFE), gr.State("", time_to_live=LIFE)
            side, way = given.asked["side"], given.asked["way"]
            bench = Bench(picture, paint, canvas, side)
        with gr.Column(scale=1, min_width=320):
            built = area(studio)

    def switch(way: str) -> tuple[Any, ...]:
        return gr.update(visible=way in STRENGTHS, value=STRENGTHS.get(way, 1.0)), gr.update(visible=way == "outpaint")

    def put(file: str | None, side: int | None) -> tuple[Any, ...]:
        picture = None if file is None else uploads.opened(file, limits, studio.folder)
        return bench.put(picture, side, studio)

    def resize(picture: Image.Image | None, side: int | None) -> tuple[Any, ...]:
        return bench.put(picture, side, studio)

    def painted(event: gr.EventData) -> str:
        paint = str(event._data.get("paint") or "")
        limits.check(upload_bytes=len(paint))
        return paint

    def ask(filled: dict[Component, Any]) -> Edit:
        asked, mask = given.filled(filled), None
        outpaint = [asked.pop(edge) or 0 for edge in EDGES]
        asked |= {
            "side": asked["side"] or side_of(studio),
            "n": asked["n"] or 1,
            "repeats": asked["repeats"] or REPEATS,
        }
        limits.check(side=asked["side"])
        if asked["way"] == "inpaint" and filled[bench.paint]:
            mask = mask_of(filled[bench.paint], asked["side"], limits)
        return Edit(picture=filled[bench.picture], mask=mask, outpaint=outpaint, **asked)

    def change(filled: dict[Component, Any], request: gr.Request) -> Iterator[Any]:
        yield from built.draw(lambda: [job(studio, ask(filled))], filled[built.state], session_of(request))

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    way.change(switch, way, [given.asked["strength"], given.sides], queue=False, **quiet)
    given.upload.upload(answering(put), [given.upload, side], bench.outputs, **quiet)
    side.change(answering(resize), [bench.picture, side], bench.outputs, **quiet)
    bench.canvas.input(answering(painted), None, bench.paint, queue=False, **quiet)
    drawing(built, change, [given.draw.click], {*given.fields(), bench.picture, bench.paint}, given.stop)
    return built, bench


def take_over(studio: Studio, source: Area, bench: Bench, tabs: gr.Tabs, to: str) -> None:
    """Binds the button ``edit`` of the images of an area: the image becomes the picture that is edited.

    Args:
        studio: the studio.
        source: the area.
        bench: the picture.
        tabs: the tabs of the page.
        to: the id of the tab Edit.
    """

    def take(board: Any, side: int | None, event: gr.EventData) -> tuple[Any, ...]:
        picture = Image.open(io.BytesIO(board.card(event._data.get("card")).drawn.png)).convert("RGB")
        return *bench.put(picture, side, studio), gr.update(selected=to)

    source.shown.edit(
        answering(take),
        [source.state, bench.side],
        [*bench.outputs, tabs],
        show_progress="hidden",
        queue=False,
        api_visibility="private",
    )
