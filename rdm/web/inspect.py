"""The tab Inspect: the record of a picture, its neighbours, whether it is a copy, and the same image made again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from rdm.web import markup, row_markup, uploads
from rdm.web.answers import SAMPLING, answering
from rdm.web.drawing import Drawn, Step
from rdm.web.inspection import (
    Inspected,
    again,
    compared,
    copy_words,
    inspected,
    named_source,
    nearest_rows,
    needed,
    record_rows,
)
from rdm.web.pieces import session_of
from rdm.web.rows import decoded_png
from rdm.web.studio import Studio

HINT = "Drop a PNG that was made here, and see what it was made of. Any other picture shows the rows nearest to it."
OWN = "its own database"
MADE_FROM = "The pictures that it was made from"
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


def tab(studio: Studio) -> None:
    """Builds the tab within the open ``gr.Tab``."""
    limits = studio.limits
    with gr.Row(elem_classes="bench"):
        with gr.Column(scale=0, min_width=330, elem_classes="ask"):
            picture = gr.Image(type="filepath", image_mode=None, label="Picture", height=240, sources=["upload"])
            place = gr.Dropdown([(OWN, ""), *studio.names], value="", label="Nearest rows of")
            sources = gr.File(file_count="multiple", file_types=["image"], label=MADE_FROM, height=110, visible=False)
            with gr.Row(elem_classes="go"):
                make = gr.Button("Make it again", variant="primary", min_width=120, interactive=False)
                stop = gr.Button("Stop", min_width=70, scale=0)
            said = gr.HTML(elem_classes="said")
        with gr.Column(scale=1, min_width=320):
            result = gr.HTML()
            shown = gr.HTML(f'<p class="hint">{HINT}</p>')

    def look(file: str | None, place: str) -> tuple[Any, ...]:
        if file is None:
            return f'<p class="hint">{HINT}</p>', "", "", gr.update(interactive=False), gr.update(visible=False)
        found = inspected(studio, uploads.content(file, limits, studio.folder))
        lacking = [] if found.place is None else [named_source(name) for name in needed(found.record or {})]
        asked = gr.update(visible=bool(lacking), value=None, label=f"{MADE_FROM}: {', '.join(lacking)}")
        return report(studio, found, place), "", "", gr.update(interactive=found.place is not None), asked

    def remake(file: str | None, files: list[str] | None, request: gr.Request) -> Iterator[Any]:
        if file is None:
            raise ValueError("got no picture, expected a PNG that was made here; upload it")
        limits.check(additions=len(files or ()))
        data = uploads.content(file, limits, studio.folder)
        given = [uploads.content(each, limits, studio.folder) for each in files or ()]
        yield from made(studio, inspected(studio, data), given, session_of(request))

    def end(request: gr.Request) -> None:
        studio.stop(session_of(request))

    gr.on(
        [picture.change, place.input], answering(look), [picture, place], [shown, result, said, make, sources], **QUIET
    )
    make.click(
        answering(remake), [picture, sources], [said, result], concurrency_id=SAMPLING, concurrency_limit=1, **QUIET
    )
    stop.click(end, queue=False, api_visibility="private")


def report(studio: Studio, found: Inspected, place: str = "") -> str:
    """Returns the HTML of what is known of a picture."""
    nearest = nearest_rows(studio, found, place or None)
    parts = [row_markup.record(found, copy_words(found, nearest))]
    own = record_rows(studio, found)
    if own:
        parts.append(f"<h3>Neighbours</h3>{row_markup.tiles(own, 'neighbours of the picture')}")
    where = place or found.place or studio.names[0]
    parts.append(f"<h3>{row_markup.nearest_to(where)}</h3>{row_markup.tiles(nearest, 'nearest rows')}")
    return f'<div class="report">{"".join(parts)}</div>'


def made(studio: Studio, found: Inspected, pictures: Sequence[bytes], session: str = "") -> Iterator[tuple[Any, Any]]:
    """Yields the progress of making an image again, and at last both images and whether they are equal."""
    yield markup.progress(Step(0.0), "making it again"), ""
    preview = None
    for event in studio.draw([again(studio, found, pictures)], session):
        if isinstance(event, Drawn):
            result = compared(found.picture, decoded_png(event.png))
            before = row_markup.png_file(found.picture)
            words = row_markup.said(result.words(), not result.equal)
            yield "", f"{words}{row_markup.pair(before, event.png)}"
            return
        preview = event.preview or preview
        yield markup.progress(event, "making it again", preview), gr.skip()
    yield markup.progress(None, "stopped"), gr.skip()
