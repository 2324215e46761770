"""Pieces of the page that several tabs have: pictures that can be clicked, fields of numbers, the folded settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from rdm.web.studio import Studio

# A click on a button with `data-do` is an event; after the page has changed, the same button has the focus again.
_CLICKS = """
let last = null;
const sent = { again: 'submit', edit: 'edit' };
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-do]');
  if (!button) return;
  const { do: what, card, slot } = button.dataset;
  last = `[data-do="${what}"]` + (card ? `[data-card="${card}"]` : '') + (slot ? `[data-slot="${slot}"]` : '');
  trigger(sent[what] || 'select', { what, card: Number(card), slot: slot === undefined ? null : Number(slot) });
});
watch('value', () => { if (last) element.querySelector(last)?.focus({ preventScroll: true }); });
"""


def pictures(html: str = "", **options: Any) -> gr.HTML:
    """Returns a component for HTML of :mod:`rdm.web.markup`, whose buttons cause events.

    ``again`` causes ``submit``, ``edit`` causes ``edit``, and every other button ``select``. The event has ``what``,
    ``card`` and ``slot``.
    """
    return gr.HTML(html, js_on_load=_CLICKS, **options)


def whole(label: str, default: int | None, most: int, least: int = 1) -> gr.Number:
    """Returns a field for a whole number."""
    return gr.Number(default, label=label, precision=0, minimum=least, maximum=most, min_width=80)


def seed_field() -> gr.Number:
    """Returns the field of the seed."""
    return gr.Number(0, label="Seed", precision=0, minimum=0, min_width=80)


def place_field(studio: Studio) -> gr.Dropdown:
    """Returns the field that chooses databases and parts of them."""
    return gr.Dropdown(
        studio.places(),
        value=studio.names[:1],
        multiselect=True,
        label="Neighbours from",
        info="Several draw side by side; * is one for each value.",
    )


@contextmanager
def folded() -> Iterator[None]:
    """Opens a closed accordion for all settings that are not shown at once."""
    with gr.Accordion("All settings", open=False), gr.Column(elem_classes="folded"):
        yield


def session_of(request: gr.Request) -> str:
    """Returns who asks."""
    return str(request.session_hash or "")
