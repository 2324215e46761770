"""What can be said of a drawing, and texts that say some of it.

A fact is a string such as ``name:apple``, ``word:fruit``, ``category:food-drink``, ``style:noto`` or ``colour:red``. A
text asks for some facts, and every picture that has all of them fits it. The colours are those measured from the
pixels: the name "red apple" gives the fact ``name:apple``, and its text says "red" only where the drawing is red.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ldm.data.colours import COLOURS

# White, black and grey in a name mostly tell a thing's own colour, which a drawing on white seldom shows.
HUES = frozenset(COLOURS) - {"black", "white", "grey"}
KINDS = {"name": 0.5, "words": 0.15, "both": 0.2, "category": 0.05, "subcategory": 0.07, "thing": 0.03}
COLOURED, STYLED = 0.45, 0.35  # how often a text tells colours, and how often the style
ARTICLE, FRAMED = 0.5, 0.3  # how often it has an article, and how often it begins with "a picture of" or the like
WITH_COLOUR = ("{c} {t}", "{c} {t}", "{c} {t}", "{t} in {c}", "{t} that is {c}", "{t} of {c} colour")
WITH_STYLE = ("{style} {t}", "{t} in {style} style", "{style} image of {t}")
FRAMES = ("an image of {t}", "a picture of {t}", "a drawing of {t}")
WORDS = "a an and image picture drawing thing object of in style that is colour " + " ".join(COLOURS)


def bare_name(name: str) -> str:
    """Returns a name in lower case without its colour words, or with them if it has no others."""
    words = name.lower().split()
    return " ".join(word for word in words if word not in HUES) or " ".join(words)


def shown_name(name: str, colours: Collection[str]) -> str:
    """Returns a name in lower case without the colour words that its drawing does not show."""
    kept = [word for word in name.lower().split() if word not in HUES or word in colours]
    return " ".join(kept) if set(kept) - HUES else bare_name(name)


def keywords_of(item: Mapping[str, str]) -> list[str]:
    """Returns the keywords of a picture in lower case, without colours."""
    return [word for word in item.get("keywords", "").lower().split(", ") if word and word not in HUES]


def facts_of(item: Mapping[str, str], colours: Collection[str]) -> frozenset[str]:
    """Returns all facts about a picture.

    Args:
        item: its metadata: ``caption`` (its name), ``keywords``, ``category``, ``subcategory``, ``style``; all but the
            name may be empty or absent.
        colours: its dominant colours.
    """
    name = bare_name(item["caption"])
    phrases = [name, *keywords_of(item)]
    words = {word for phrase in phrases for word in (phrase, *phrase.split())}
    facts = {f"name:{name}"} | {f"word:{word}" for word in words} | {f"colour:{colour}" for colour in colours}
    facts |= {f"{key}:{item[key]}" for key in ("category", "subcategory", "style") if item.get(key)}
    return frozenset(facts)


def text_about(item: Mapping[str, str], colours: Sequence[str], rng: np.random.Generator) -> tuple[str, frozenset[str]]:
    """Returns a text about a picture and the facts for which it asks.

    Args:
        item: metadata, as for :func:`facts_of`.
        colours: the dominant colours, the largest first.
        rng: chooses what is said, and how.
    """
    keywords = keywords_of(item)
    possible = {"category": item.get("category"), "subcategory": item.get("subcategory"), "words": keywords}
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    if not possible.get(kind, colours if kind == "thing" else True):
        kind = "name"
    tells_colour = bool(rng.random() < COLOURED) or kind == "thing"
    asked: set[str] = set()
    said: set[str] = set()
    parts: list[str] = []
    if kind in ("name", "both"):
        parts.append(shown_name(item["caption"], colours) if tells_colour else bare_name(item["caption"]))
        said = set(parts[0].split()) & set(colours)
        asked.add(f"name:{bare_name(item['caption'])}")
    if kind in ("words", "both"):
        chosen = [str(word) for word in rng.permutation(keywords)[: rng.integers(1, 4)]]
        asked |= {f"word:{word}" for word in chosen}
        parts += chosen
    if kind in ("category", "subcategory"):
        asked.add(f"{kind}:{item[kind]}")
        parts.append(item[kind].replace("-", " "))
    text = " ".join(parts) or str(rng.choice(("thing", "object", "drawing")))
    if tells_colour and colours and not said:
        many = int(rng.integers(1, len(colours) + 1))
        said = {str(colour) for colour in rng.permutation(list(colours))[:many]}
        words = " and ".join(str(colour) for colour in rng.permutation(sorted(said)))
        text = str(rng.choice(WITH_COLOUR)).format(c=words, t=text)
    asked |= {f"colour:{colour}" for colour in said}
    if item.get("style") and rng.random() < STYLED:
        asked.add(f"style:{item['style']}")
        text = str(rng.choice(WITH_STYLE)).format(style=item["style"].replace("-", " "), t=text)
    if rng.random() < ARTICLE:
        text = with_article(text)
    if rng.random() < FRAMED:
        text = str(rng.choice(FRAMES)).format(t=text)
    return text, frozenset(asked)


def with_article(text: str) -> str:
    """Returns a text after "a" or "an"."""
    return f"{'an' if text[:1] in tuple('aeiou') else 'a'} {text}"


def positives(facts: Sequence[frozenset[str]], asked: Sequence[frozenset[str]]) -> Tensor:
    """Returns which pictures have all facts for which which texts ask, ``[B, B']`` bool.

    Args:
        facts: of each of B pictures, from :func:`facts_of`.
        asked: of each of B' texts, from :func:`text_about`.
    """
    return torch.tensor([[wanted <= known for wanted in asked] for known in facts])
