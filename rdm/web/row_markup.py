"""The HTML of database rows, of what a database is, and of the record of an image. All texts are escaped."""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Mapping, Sequence
from html import escape
from typing import Any

from PIL import Image

from rdm.retrieval.database.summary import Summary
from rdm.sampling.settings import DEFAULTS
from rdm.web.inspection import Inspected
from rdm.web.markup import button, picture
from rdm.web.rows import GIVEN, Row

LONGEST = 20_000  # characters of a record that are shown
LISTED = 12  # licences, sources or styles of a database that are named


def tiles(rows: Sequence[Row], label: str, marked: Collection[int] | None = None) -> str:
    """Returns rows as a grid of their pictures with similarity, caption, number and licence.

    Args:
        rows: the rows.
        label: what they are, for a screen reader.
        marked: the numbers of the rows that are marked; None if rows cannot be marked.
    """
    items = "".join(f'<li class="slot{_state(row, marked)}">{_tile(row, marked)}</li>' for row in rows)
    return f'<ul class="slots tiles" aria-label="{escape(label)}">{items}</ul>'


def _state(row: Row, marked: Collection[int] | None) -> str:
    return " marked" if marked is not None and row.number in marked else " gone" if row.removed else ""


def _tile(row: Row, marked: Collection[int] | None) -> str:
    caption = str(row.about.get("caption") or "no caption")
    if row.png is None:
        shown = f'<div class="no-picture">{"removed" if row.removed else "no picture"}</div>'
    else:
        shown = picture(row.png, caption)
    if marked is not None:
        does = f"row {row.number}, {caption}: mark it for removal"
        shown = button(shown, does, "mark", row.number, pressed=row.number in marked, css="switch")
    return f"{shown}{_about(row)}"


def _about(row: Row) -> str:
    """Returns similarity and caption, and the number and licence, which open attribution and origin."""
    score = "" if row.similarity is None else f"<b>{row.similarity:.2f}</b> "
    caption, licence, attribution, uri = (
        escape(str(row.about.get(key) or "")) for key in ("caption", "licence", "attribution", "uri")
    )
    number = "" if row.number == GIVEN else f"row {row.number}<br>"
    return (
        f'<div class="about">{score}{caption or "no caption"}'
        f"<details><summary>{licence or 'licence unknown'}</summary>"
        f"{number}{attribution or 'no attribution'}<br>{uri}</details></div>"
    )


def facts(known: Summary) -> str:
    """Returns what a database is: its numbers in one line, and what opens its licences, sources and styles."""
    removed = f" ({known.rows - known.living:,} removed)" if known.rows > known.living else ""
    card = known.index or {}
    parts = {
        "rows": f"{known.living:,}{removed}",
        "licences": f"{len(known.licences):,}",
        "sources": f"{len(known.sources):,}",
        **({"styles": f"{len(known.styles):,}"} if known.styles else {}),
        "index": f"{card.get('factory', 'none')}{', exact' if card.get('factory') == 'Flat' else ''}",
        **({"recall@20": _recall(card)} if _recall(card) else {}),
        **({"memory": f"{card['bytes'] / 1e6:.1f} MB"} if "bytes" in card else {}),
        "disk": f"{sum(known.bytes.values()) / 1e6:.1f} MB",
    }
    numbers = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in parts.items())
    lists = [
        _counts(name, counts)
        for name, counts in (("Licences", known.licences), ("Sources", known.sources), ("Styles", known.styles))
        if counts
    ]
    index = f"<p>Index: {escape(known.index_words())}.</p><p>Embedder: {escape(known.embedder)}.</p>"
    return (
        f'<div class="facts"><dl>{numbers}</dl><details><summary>licences, sources, index</summary>'
        f'<div class="counts">{"".join(lists)}</div>{index}</details></div>'
    )


def _recall(card: Mapping[str, Any]) -> str:
    """Returns the recall of pictures and texts that an index states; "" if it states none."""
    stated = [values["recall@20"] for values in card.get("recall", {}).values() if "recall@20" in values]
    return " / ".join(dict.fromkeys(f"{value:.0%}" for value in stated))


def _counts(name: str, counts: Mapping[str, int]) -> str:
    """Returns how many rows have each value, as a table."""
    first = list(counts.items())[:LISTED]
    rows = "".join(
        f"<tr><td>{escape(value.removesuffix('#') or 'unknown')}</td><td>{count:,}</td></tr>" for value, count in first
    )
    more = f"<tr><td>{len(counts) - LISTED:,} more</td><td></td></tr>" if len(counts) > LISTED else ""
    return f"<table><caption>{name}</caption>{rows}{more}</table>"


def said(text: str, flagged: bool = False) -> str:
    """Returns a message that a screen reader reads out; none if it is empty."""
    return f'<p class="message{" flag" if flagged else ""}" role="status">{escape(text)}</p>' if text else ""


def record(found: Inspected, copy: str) -> str:
    """Returns the record of an image as a table, and what is known of it being a copy."""
    if found.record is None:
        return f"{_signed(found)}{said(found.note)}{said(copy)}"
    what = found.record
    settings = {name: value for name, value in what["settings"].items() if value != DEFAULTS.get(name)}
    asked = {name: value for name, value in what["asked"].items() if name != "way"}
    lines = {
        "asked for": f"{what['query']} ({what['asked'].get('way', 'unknown')})",
        **({"text seen": what["prompt"]} if what.get("prompt") not in (None, what["query"]) else {}),
        "seed": what["seed"],
        "found with": ", ".join(f"{name} {value}" for name, value in asked.items()),
        "settings": ", ".join(f"{name} {value}" for name, value in settings.items()),
        "model": f"{what['checkpoint']} ({what['checkpoint_sha256'][:12]})",
        "database": f"{what.get('database', 'none')} ({str(what.get('database_fingerprint', ''))[:12]})",
        **({"edit of": _edited(what["edit"])} if isinstance(what.get("edit"), dict) else {}),
        "torch": what.get("torch", "unknown"),
    }
    rows = "".join(f"<tr><th>{name}</th><td>{escape(str(value)[:600])}</td></tr>" for name, value in lines.items())
    whole = escape(json.dumps(what, indent=1, ensure_ascii=False)[:LONGEST])
    more = f"<details><summary>the whole record</summary><pre>{whole}</pre></details>"
    return f'{_signed(found)}{said(copy)}{said(found.obstacle, True)}<table class="record">{rows}</table>{more}'


def _signed(found: Inspected) -> str:
    """Returns what the signature of a picture proves; nothing if the page has no key."""
    if found.signature is None:
        return ""
    return said(f"Signature: {found.signature.words()}.", not found.signature.is_good)


def _edited(edit: Mapping[str, Any]) -> str:
    """Returns in words how a picture was edited."""
    picture = f"{edit.get('picture') or 'an upload'} ({str(edit.get('picture_sha256'))[:12]})"
    done = [name for name in ("mask_sha256", "outpaint", "invert") if edit.get(name)]
    words = {"mask_sha256": "repainted in a mask", "outpaint": "extended", "invert": "inverted"}
    return f"{picture}, {', '.join(words[name] for name in done) or 'varied'}, strength {edit.get('strength')}"


def nearest_to(name: str) -> str:
    """Returns the heading of the nearest rows of a database."""
    return f"Nearest rows of {escape(name)}"


def png_file(image: Image.Image) -> bytes:
    """Returns a picture as a PNG file without a record."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def pair(first: bytes, again: bytes) -> str:
    """Returns an image beside the one that was made again."""
    shown = (("as given", first), ("made again", again))
    figures = "".join(f"<figure>{picture(png, name)}<figcaption>{name}</figcaption></figure>" for name, png in shown)
    return f'<div class="pair">{figures}</div>'
