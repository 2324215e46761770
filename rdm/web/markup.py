"""The HTML of pictures. Texts from users and databases are escaped; pictures stand in the page itself, in no file."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape

from rdm.web.studio import Drawn


def picture(png: bytes, alt: str, css: str = "") -> str:
    """Returns an ``<img>`` of a PNG file. The browser enlarges it without blurring its pixels."""
    data = base64.b64encode(png).decode()
    return f'<img class="pixels {escape(css)}" alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def neighbour(png: bytes, about: dict[str, object]) -> str:
    """Returns the picture of a database row with its similarity, licence and attribution."""
    caption, licence, attribution = (str(about[key] or "") for key in ("caption", "licence", "attribution"))
    words = f"<b>{about['similarity']:.2f}</b> {escape(caption)}<br><small>{escape(licence)}</small>"
    return (
        f'<figure class="neighbour" title="{escape(attribution)}">{picture(png, f"neighbour: {caption}")}'
        f"<figcaption>{words}</figcaption></figure>"
    )


def card(drawn: Drawn) -> str:
    """Returns one image beside its neighbours."""
    query, seed = str(drawn.record["query"]), drawn.record["seed"]
    found = zip(drawn.neighbours, drawn.record["neighbours"], strict=True)
    return (
        f'<section class="card" aria-label="{escape(query)}"><figure class="image">{picture(drawn.png, query)}'
        f"<figcaption>{escape(query)}, seed {seed}</figcaption></figure>"
        f'<div class="neighbours">{"".join(neighbour(png, about) for png, about in found)}</div></section>'
    )


def board(cards: Iterable[str]) -> str:
    """Returns the HTML of several images with their neighbours."""
    return f'<div class="board">{"".join(cards)}</div>'
