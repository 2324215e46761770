"""Pieces of the page that several tabs have: pictures that can be clicked, fields of numbers, the folded settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from rdm.sampling.settings import OPTIONS, Settings
from rdm.web.studio import EVERY, Studio

HERE = Path(__file__).parent
SHOWN = ("steps", "scale")  # the settings among the numbers, which are not folded away
CLICKS, PAINT = ((HERE / name).read_text(encoding="utf-8") for name in ("clicks.js", "paint.js"))


def pictures(html: str = "", **options: Any) -> gr.HTML:
    """Returns a component for HTML of :mod:`rdm.web.markup`, whose buttons cause events.

    ``again`` causes ``submit``, ``edit`` causes ``edit``, and every other button ``select``. The event has ``what``,
    ``card`` and ``slot``.
    """
    return gr.HTML(html, js_on_load=CLICKS, **options)


def whole(label: str, default: int | None, most: int, least: int = 1) -> gr.Number:
    """Returns a field for a whole number."""
    return gr.Number(default, label=label, precision=0, minimum=least, maximum=most, min_width=80)


def begin_and_end() -> tuple[gr.Button, gr.Button]:
    """Returns the buttons that begin a drawing and end it, side by side."""
    with gr.Row(elem_classes="go"):
        return gr.Button("Draw", variant="primary", min_width=100), gr.Button("Stop", min_width=70, scale=0)


def numbers(
    studio: Studio, n: int = 1, least: int = 1, **given: Any
) -> tuple[dict[str, Component], dict[str, Component]]:
    """Returns the fields of numbers that every tab shows: ``n``, ``k`` and ``seed``; and ``steps`` and ``scale``.

    Args:
        studio: the studio.
        n: the number of images that is shown first.
        least: the least that it can be.
        given: settings that have other defaults here.
    """
    pipeline, limits = studio.pipeline(), studio.limits
    usual, settings = Settings(**given).for_model(pipeline.model), dict[str, Component]()
    asked: dict[str, Any] = {"n": whole("Images", min(n, limits.images), limits.images, least)}
    asked["k"] = whole("Neighbours", pipeline.k, limits.neighbours)
    if pipeline.model.kind in OPTIONS["steps"].kinds:
        settings["steps"] = whole("Steps", usual.steps, limits.steps)
    settings["scale"] = gr.Number(usual.scale, label="Scale", step=0.5, min_width=80)
    asked["seed"] = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=80)
    return asked, settings


def place_field(studio: Studio, several: bool = True) -> gr.Dropdown:
    """Returns the field that chooses databases and parts of them, several or one."""
    places, first = studio.places(), studio.names[0]
    if several:
        info = "Several draw side by side; * is one for each value."
        return gr.Dropdown(places, value=[first], multiselect=True, label="Neighbours from", info=info)
    return gr.Dropdown([place for place in places if EVERY not in place], value=first, label="Neighbours from")


@contextmanager
def folded() -> Iterator[None]:
    """Opens a closed accordion for all settings that are not shown at once."""
    with gr.Accordion("All settings", open=False), gr.Column(elem_classes="folded"):
        yield


def session_of(request: gr.Request) -> str:
    """Returns who asks."""
    return str(request.session_hash or "")
