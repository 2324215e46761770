"""The HTML of pictures. Texts from users and databases are escaped; pictures stand in the page itself, in no file."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping, Sequence
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
    similarity = what.get("similarity")
    score = "" if similarity is None or math.isnan(similarity) else f"<b>{similarity:.2f}</b> "
    licence, attribution = (escape(str(what.get(key) or "")) for key in ("licence", "attribution"))
    more = f"<details><summary>{licence or 'licence unknown'}</summary>{attribution or 'no attribution'}</details>"
    return f'<div class="about">{score}{escape(str(what.get("caption") or "no caption"))}{more}</div>'


def neighbour(slot: Slot, card: int, number: int) -> str:
    """Returns a neighbour as a switch, with its pin and the button that replaces it."""
    name = f"neighbour {number + 1}, {slot.caption}"
    marks = {"on": slot.on, "off": not slot.on, "pinned": slot.pinned, "new": slot.new}
    state = " ".join(mark for mark, holds in marks.items() if holds)
    label = f"{name}: the model {'sees' if slot.on else 'does not see'} it"
    switch = button(picture(slot.png, slot.caption), label, "switch", card, number, pressed=slot.on, css="switch")
    pin = button("pin", f"{name}: keep it for the next pictures", "pin", card, number, pressed=slot.pinned)
    swap = button("swap", f"{name}: put another picture in its place", "swap", card, number)
    return f'<li class="slot {state}">{switch}<div class="tools">{pin}{swap}</div>{about(slot.about)}</li>'


def card(shown: Card, number: int) -> str:
    """Returns one image beside its neighbours."""
    seed, place = shown.drawn.record["seed"], shown.drawn.place.partition(": ")[2]
    caption = " · ".join(escape(words) for words in (shown.title, place, f"seed {seed}") if words)
    if (shown.drawn.record.get("copy") or {}).get("is_copy"):
        caption += ' <strong class="flag">near-copy of a database picture</strong>'
    if draft := shown.drawn.record.get("draft"):
        kept = "this is the draft, which saw no neighbour" if draft["kept"] else "drawn after a draft"
        caption += f" · {kept} (similarity to the text {draft['score']:.2f})"
    before = "" if shown.drawn is shown.first else earlier(shown.first.png, shown.title)
    slots = "".join(neighbour(slot, number, place) for place, slot in enumerate(shown.slots))
    return (
        f'<section class="card" aria-label="{escape(shown.title)}, seed {seed}"><figure class="image">'
        f"{image(shown)}{before}<figcaption>{caption}</figcaption>"
        f'<div class="tools">{"".join(tools_of(shown, number))}</div></figure>'
        f'<ul class="slots" aria-label="neighbours of {escape(shown.title)}">{slots}</ul></section>'
    )


def tools_of(shown: Card, number: int) -> list[str]:
    """Returns the buttons of an image: draw it again, edit it, save it; and save what it is an edit of."""
    name = re.sub(r"[^a-z0-9]+", "-", shown.title.lower()).strip("-")[:40] or "picture"
    file = f"{name}-{shown.drawn.record['seed']}-{number}"
    again = f"draw {shown.title} again with these neighbours and the same seed"
    return [
        button("draw again", again, "again", number, css="due" if shown.is_changed else ""),
        button("edit", f"edit {shown.title}", "edit", number),
        saved(shown.drawn.png, f"{file}.png", "save", f"save {shown.title}"),
        *(
            saved(png, f"{file}-{what}.png", f"save {what}", f"save the {what}, with which Inspect makes it again")
            for what, png in shown.drawn.sources.items()
        ),
    ]


def saved(png: bytes, file: str, label: str, title: str) -> str:
    """Returns a link that saves a PNG file."""
    return f'<a download="{escape(file)}" href="{data_url(png)}" title="{escape(title)}">{escape(label)}</a>'


def image(shown: Card) -> str:
    """Returns an image; an edit is laid over the picture that it is of, with a slider between them."""
    if shown.drawn.edited is None:
        return picture(shown.drawn.png, shown.title)
    slider = '<input type="range" min="0" max="100" value="50" aria-label="how much is shown of before and after">'
    before, after = (
        picture(shown.drawn.edited, f"{shown.title}, before"),
        picture(shown.drawn.png, shown.title, "after"),
    )
    return f'<div class="compare">{before}{after}{slider}</div>'


def canvas(png: bytes | None, side: int) -> str:
    """Returns a canvas over a picture, to paint on, with the tools for it.

    Args:
        png: the picture; None if there is none yet.
        side: height and width of the canvas in pixels.
    """
    if png is None:
        return '<p class="hint">Upload a picture at the left, or press "edit" below an image in another tab.</p>'
    width = max(1, side // 8)
    return (
        f'<div class="paint"><canvas width="{side}" height="{side}" style="background-image: url({data_url(png)})" '
        'role="img" aria-label="the picture; paint on it what is to be redrawn"></canvas><div class="tools">'
        f'<label>brush <input type="range" name="width" min="1" max="{side // 2}" value="{width}"></label>'
        '<label><input type="checkbox" name="rub"> rub out</label><button type="button" name="clear">clear</button>'
        "</div></div>"
    )


def strip(shown: Board) -> str:
    """Returns the HTML of images in one row, each above its neighbours."""
    if not shown.cards:
        return f'<p class="hint">{ASK}</p>'
    items = []
    for number, each in enumerate(shown.cards):
        share = f'<div class="about">{number / max(1, len(shown.cards) - 1):.0%}</div>'
        few = "".join(picture(slot.png, slot.caption) for slot in each.slots)
        tools = "".join(tools_of(each, number)[1:])
        items.append(
            f'<li>{picture(each.drawn.png, each.title)}{share}<div class="tools">{tools}</div>'
            f'<div class="few" role="group" aria-label="neighbours">{few}</div></li>'
        )
    return f'<div class="images"><ol class="strip">{"".join(items)}</ol></div>'


def earlier(png: bytes, title: str) -> str:
    """Returns an image as it was before its neighbours were changed."""
    return f'<figure class="before">{picture(png, f"{title}, before")}<figcaption>before</figcaption></figure>'


def board(shown: Board) -> str:
    """Returns the HTML of all images with their neighbours."""
    if not shown.cards:
        return f'<p class="hint">{ASK}</p>'
    cards = "".join(card(each, number) for number, each in enumerate(shown.cards))
    return f'<div class="images"><div class="board">{cards}</div></div>'


def words(text: str) -> str:
    """Returns a paragraph."""
    return f"<p>{escape(text)}</p>"


def found(slots: Sequence[Slot]) -> str:
    """Returns pictures of which one is to be chosen."""
    choices = []
    for number, slot in enumerate(slots):
        take = button(picture(slot.png, slot.caption), f"take {slot.caption}", "take", number, css="switch")
        choices.append(f"<li>{take}{about(slot.about)}</li>")
    return f'<ul class="slots found images" aria-label="found pictures">{"".join(choices)}</ul>'


def progress(step: Step | None, words: str, before: bytes | None = None) -> str:
    """Returns how far a drawing is, with the latest preview."""
    shown = (step and step.preview) or before
    image = "" if shown is None else picture(shown, "what the model thinks the picture is", "preview")
    bar = "" if step is None else f'<progress max="1" value="{step.share:.3f}"></progress>'
    return f'<div class="progress" role="status">{image}<div>{escape(words)}{bar}</div></div>'
