"""The HTML of pictures. Texts from users and databases are escaped; pictures stand in the page itself, in no file."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from html import escape
from typing import Any

from rdm.web.drawing import Step
from rdm.web.switches import Board, Card, Slot

ASK = "Ask for a picture at the left. It appears here, beside the database pictures that the model saw."


def data_url(png: bytes) -> str:
    """Returns the address of a PNG file whose content is the address itself."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def picture(png: bytes, alt: str, css: str = "") -> str:
    """Returns an ``<img>`` of a PNG file. The browser enlarges it without blurring its pixels."""
    return f'<img class="pixels {escape(css)}" alt="{escape(alt)}" src="{data_url(png)}">'


def button(label: str, title: str, what: str, *numbers: int, pressed: bool | None = None, css: str = "") -> str:
    """Returns a ``<button>`` whose click tells the page what to do with which card and slot.

    Args:
        label: its HTML.
        title: what it does, for a screen reader and as a tooltip.
        what: the action.
        numbers: the number of the card and, if there is one, of its slot.
        pressed: its state if it is a switch.
        css: further classes.
    """
    data = "".join(f' data-{name}="{number}"' for name, number in zip(("card", "slot"), numbers, strict=False))
    state = "" if pressed is None else f' aria-pressed="{str(pressed).lower()}"'
    words = f'title="{escape(title)}" aria-label="{escape(title)}"'
    return f'<button type="button" class="{css}" data-do="{what}"{data}{state} {words}>{label}</button>'


def about(what: Mapping[str, Any]) -> str:
    """Returns similarity, caption, and the licence, which opens the attribution."""
    score = "" if what.get("similarity") is None else f"<b>{what['similarity']:.2f}</b> "
    licence, attribution = (escape(str(what.get(key) or "")) for key in ("licence", "attribution"))
    more = f"<details><summary>{licence or 'licence unknown'}</summary>{attribution or 'no attribution'}</details>"
    return f'<div class="about">{score}{escape(str(what.get("caption") or "no caption"))}{more}</div>'


def neighbour(slot: Slot, card: int, number: int) -> str:
    """Returns a neighbour as a switch, with its pin and the button that replaces it."""
    caption = str(slot.about.get("caption") or "no caption")
    name = f"neighbour {number + 1}, {caption}"
    marks = {"on": slot.on, "off": not slot.on, "pinned": slot.pinned, "new": slot.new}
    state = " ".join(mark for mark, holds in marks.items() if holds)
    label = f"{name}: the model {'sees' if slot.on else 'does not see'} it"
    switch = button(picture(slot.png, caption), label, "switch", card, number, pressed=slot.on, css="switch")
    pin = button("pin", f"{name}: keep it for the next pictures", "pin", card, number, pressed=slot.pinned)
    swap = button("swap", f"{name}: put another picture in its place", "swap", card, number)
    return f'<li class="slot {state}">{switch}<div class="tools">{pin}{swap}</div>{about(slot.about)}</li>'


def card(shown: Card, number: int) -> str:
    """Returns one image beside its neighbours."""
    seed, place = shown.drawn.record["seed"], shown.drawn.place.partition(": ")[2]
    caption = " · ".join(escape(words) for words in (shown.title, place, f"seed {seed}") if words)
    if (shown.drawn.record.get("copy") or {}).get("is_copy"):
        caption += ' <strong class="flag">near-copy of a database picture</strong>'
    name = re.sub(r"[^a-z0-9]+", "-", shown.title.lower()).strip("-")[:40] or "picture"
    before = "" if shown.before is None else earlier(shown.before, shown.title)
    tools = (
        button("draw again", f"draw {shown.title} again with these neighbours and the same seed", "again", number),
        button("edit", f"edit {shown.title}", "edit", number),
        f'<a download="{name}-{seed}.png" href="{data_url(shown.drawn.png)}">save</a>',
    )
    slots = "".join(neighbour(slot, number, place) for place, slot in enumerate(shown.slots))
    return (
        f'<section class="card" aria-label="{escape(shown.title)}, seed {seed}"><figure class="image">'
        f"{picture(shown.drawn.png, shown.title)}{before}<figcaption>{caption}</figcaption>"
        f'<div class="tools">{"".join(tools)}</div></figure>'
        f'<ul class="slots" aria-label="neighbours of {escape(shown.title)}">{slots}</ul></section>'
    )


def earlier(png: bytes, title: str) -> str:
    """Returns an image as it was before its neighbours were changed."""
    return f'<figure class="before">{picture(png, f"{title}, before")}<figcaption>before</figcaption></figure>'


def board(shown: Board) -> str:
    """Returns the HTML of all images with their neighbours."""
    if not shown.cards:
        return f'<p class="hint">{ASK}</p>'
    return f'<div class="board">{"".join(card(each, number) for number, each in enumerate(shown.cards))}</div>'


def found(slots: tuple[Slot, ...]) -> str:
    """Returns pictures of which one is to be chosen."""
    choices = []
    for number, slot in enumerate(slots):
        caption = str(slot.about.get("caption") or "no caption")
        take = button(picture(slot.png, caption), f"take {caption}", "take", number, css="switch")
        choices.append(f"<li>{take}{about(slot.about)}</li>")
    return f'<ul class="slots found" aria-label="found pictures">{"".join(choices)}</ul>'


def progress(step: Step | None, words: str, before: bytes | None = None) -> str:
    """Returns how far a drawing is, with the latest preview."""
    shown = (step and step.preview) or before
    image = "" if shown is None else picture(shown, "what the model thinks the picture is", "preview")
    bar = "" if step is None else f'<progress max="1" value="{step.share:.3f}"></progress>'
    return f'<div class="progress" role="status">{image}<div>{escape(words)}{bar}</div></div>'
