"""What a user can ask for in the tabs Create and Between, as requests of :mod:`rdm.sampling.ways`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from rdm.retrieval.classes import class_names
from rdm.sampling import ways
from rdm.sampling.pipeline import Pipeline
from rdm.sampling.request import Request
from rdm.sampling.settings import OPTIONS, Settings
from rdm.sampling.values import ARGUMENTS, CHECKPOINT, NEGATIVE_WEIGHT, SWITCH, TOP_M, check_arguments
from rdm.web.drawing import Job
from rdm.web.studio import Studio

WAYS = ("text", "class", "picture", "popular")
TOKENS = ("neighbours", "both", "text")
# Settings that the page does not have: paths on the server, backends of the compiler, and what needs them.
LEFT_OUT = tuple(name for name, known in OPTIONS.items() if known.value in (CHECKPOINT, SWITCH)) + ("weaker_scale",)


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What the tab Create asks for.

    Attributes:
        way: ``text``, ``class``, ``picture`` or ``popular``.
        words: the texts, or the names of classes.
        picture: the picture of the way ``picture``.
        n: images of each text, class or picture.
        places: databases and parts of them, see :meth:`rdm.web.studio.Studio.places`. Each makes all images, with the
            same seeds; without one, the first database does.
        k: number of neighbours; None takes as many as in training.
        seed: the seed of the first image.
        tokens: what the model sees of a text or class: its ``neighbours``, ``both``, or the ``text`` alone.
        negative: a text that the query of texts is moved away from; none if it is empty or None.
        negative_weight: its weight.
        by: ``text`` or ``label``, how the rows of a class are found.
        top_m: share of the rows that count as popular.
        settings: the sampling settings that differ from their defaults.
    """

    way: str = "text"
    words: Sequence[str] = ()
    picture: Image.Image | None = None
    n: int = 1
    places: Sequence[str] = ()
    k: int | None = None
    seed: int = 0
    tokens: str = "neighbours"
    negative: str | None = None
    negative_weight: float = NEGATIVE_WEIGHT
    by: str = "text"
    top_m: float = TOP_M
    settings: Mapping[str, Any] = field(default_factory=dict)


def jobs(studio: Studio, ask: Ask) -> list[Job]:
    """Returns what is drawn: a job for each place.

    Raises:
        ValueError: something has a value that is not accepted, or exceeds a limit.
    """
    words = checked_words(studio, ask.words)
    check_arguments(n=ask.n, k=ask.k, seed=ask.seed)
    places = studio.expanded(ask.places)
    studio.limits.check(images=max(1, len(words)) * ask.n * len(places), neighbours=ask.k)
    settings = settings_of(ask.settings)
    settings.check_tokens(ask.tokens)
    return [studio.job(place, _request(studio, studio.pipeline(place), ask, words), settings) for place in places]


def _request(studio: Studio, pipeline: Pipeline, ask: Ask, words: Sequence[str]) -> Request:
    numbers: dict[str, Any] = {"k": ask.k, "seed": ask.seed}
    each = [word for word in words for _ in range(ask.n)]
    if ask.way == "text":
        if not words:
            raise ValueError("got no text, expected one in each line; write what the picture shows")
        moved: dict[str, Any] = {}
        if ask.negative is not None and ask.negative.strip():
            (negative,) = checked_words(studio, [ask.negative])
            moved = {"negative": negative, "negative_weight": ask.negative_weight}
        return ways.texts(pipeline, each, tokens=ask.tokens, **moved, **numbers)
    if ask.way == "class":
        if not words:
            raise ValueError("got no class, expected one of the database; choose one")
        known = class_names(pipeline.retriever.database)
        if unknown := [word for word in words if word not in known]:
            raise ValueError(f"the database has no class '{unknown[0]}'; choose one of its {len(known)} classes")
        return ways.classes(pipeline, each, by=ask.by, tokens=ask.tokens, **numbers)
    if ask.way == "picture":
        if ask.picture is None:
            raise ValueError("got no picture, expected one; upload it")
        seen = "picture" if ask.tokens == "text" else ask.tokens
        return ways.image(pipeline, ask.picture, ask.n, tokens=seen, **numbers)
    if ask.way == "popular":
        if note := studio.popular.note(pipeline):
            raise ValueError(note)
        return ways.popular(pipeline, ask.n, top_m=ask.top_m, **numbers)
    raise ValueError(f"got the way '{ask.way}', expected {', '.join(WAYS)}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Between:
    """What the tab Between asks for.

    Attributes:
        start: the text or the picture that the strip begins with.
        end: the one that it ends with.
        n: number of images.
        place: the database or the part of it that neighbours come from; the first database if it is None.
        k: see :class:`Ask`; this also holds for ``seed`` and ``settings``.
    """

    start: str | Image.Image
    end: str | Image.Image
    n: int = 7
    place: str | None = None
    k: int | None = None
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)


def between(studio: Studio, ask: Between) -> Job:
    """Returns what is drawn.

    Raises:
        ValueError: an end is missing, or something has a value that is not accepted or exceeds a limit.
    """
    start, end = (_end(studio, each) for each in (ask.start, ask.end))
    check_arguments(n=ask.n, k=ask.k, seed=ask.seed)
    studio.limits.check(images=ask.n, neighbours=ask.k)
    place = ask.place or studio.names[0]
    request = ways.between(studio.pipeline(place), start, end, ask.n, k=ask.k, seed=ask.seed)
    return studio.job(place, request, settings_of(ask.settings))


def _end(studio: Studio, given: str | Image.Image) -> str | Image.Image:
    """Returns an end of a strip after a check.

    Raises:
        ValueError: there is none, or the text is too long.
    """
    words = [given] if isinstance(given, Image.Image) else checked_words(studio, [given])
    if not words:
        raise ValueError("got one text, expected two: what the strip leads from, and what it leads to; write both")
    return words[0]


def checked_words(studio: Studio, words: Sequence[str]) -> list[str]:
    """Returns texts without spaces around them, and without empty ones, after a check of their length.

    Raises:
        ValueError: one is no text or too long.
    """
    for word in words:
        ARGUMENTS["prompt"].check("prompt", word if not isinstance(word, str) or word.strip() else "none")
        studio.limits.check(prompt_characters=len(word))
    return [word.strip() for word in words if word.strip()]


def settings_of(given: Mapping[str, Any]) -> Settings:
    """Returns sampling settings from their values by name.

    Raises:
        ValueError: a setting is unknown, not available on the page, or does not accept its value.
    """
    if named := [name for name in given if name in LEFT_OUT]:
        raise ValueError(f"got the setting {named[0]}, which the page does not have; leave it out, or use the scripts")
    return Settings.of(**given)
