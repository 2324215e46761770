"""Requests that the page answers, each with the answer that Python gives."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.web.visitor import API, Visitor, WrongAnswerError
from rdm.sampling.pipeline import Pipeline
from rdm.sampling.settings import DEFAULTS
from rdm.web.rows import Row, search

TEXTS = ("a cat face", "a red heart", "a guitar", "the sun", "a flag", "an apple", "a bus", "a house")
STEPS, SEEDS = 2, 2
ROWS = 8  # that a search shows
PNG = b"\x89PNG"
TITLE = b"Retrieval-augmented diffusion"
ASSETS = sorted(Path(str(distribution("gradio").locate_file("gradio/templates/frontend/assets"))).glob("*.*"))
SAMPLING = "sampling"
Ask = Callable[[Visitor, int], Awaitable[None]]


@dataclass(frozen=True)
class Kind:
    """A kind of request.

    Attributes:
        name: its name in the results.
        share: its share of all requests.
        ask: asks the request of a number, and checks the answer.
    """

    name: str
    share: float
    ask: Ask


def check(is_right: bool, what: str) -> None:
    """Checks an answer.

    Raises:
        WrongAnswerError: it is wrong.
    """
    if not is_right:
        raise WrongAnswerError(what)


async def page(visitor: Visitor, _: int) -> None:
    """Loads the page."""
    check(TITLE in await visitor.get("/"), "the page without its title")


async def asset(visitor: Visitor, number: int) -> None:
    """Loads a script or style of Gradio."""
    file = ASSETS[number % len(ASSETS)]
    check(await visitor.get(f"/assets/{file.name}") == file.read_bytes(), f"another content of {file.name}")


async def settings(visitor: Visitor, _: int) -> None:
    """Asks for the settings of sampling."""
    known = await visitor.call("settings")
    given = {name: about["default"] for name, about in known.items()}
    same = all(DEFAULTS[name] is None or value == as_json(DEFAULTS[name]) for name, value in given.items())
    check("steps" in given and same, f"the settings {given}")  # the model fills in what is None


def as_json(value: Any) -> Any:
    """Returns a default as it comes back from JSON."""
    return list(value) if isinstance(value, tuple) else value


def places(pipeline: Pipeline) -> Ask:
    """Returns a kind of request that asks for the databases and their parts."""
    database = pipeline.retriever.database
    name, styles = database.path.name, set(database.values("style", np.arange(len(database))))
    wanted = [name, *(f"{name}: style={style}" for style in styles)]

    async def ask(visitor: Visitor, _: int) -> None:
        found = await visitor.call("places")
        check(found[0] == wanted[0] and set(wanted) <= set(found), f"the places {found}")

    return ask


async def upload(visitor: Visitor, number: int) -> None:
    """Uploads a picture and loads it again."""
    content = png(np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    path = await visitor.upload(content)
    check(await visitor.get(f"{API}file={path}") == content, "an upload that came back changed")


def png(pixels: np.ndarray) -> bytes:
    """Returns a PNG file of pixels ``[H, W, 3] uint8``."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def hash_of(image: Image.Image) -> str:
    """Returns the SHA-256 of the pixels of an image."""
    return hashlib.sha256(np.asarray(image.convert("RGB")).tobytes()).hexdigest()


def sampling(pipeline: Pipeline) -> Ask:
    """Returns a kind of request that draws an image, which has the bits of Python."""
    wanted = {
        (text, seed): hash_of(pipeline(text, seed=seed, steps=STEPS)[0]) for text in TEXTS for seed in range(SEEDS)
    }

    async def ask(visitor: Visitor, number: int) -> None:
        text, seed = list(wanted)[number % len(wanted)]
        answer = await visitor.call("texts", prompts=[text], seed=seed, settings={"steps": STEPS})
        (image,) = answer["images"]
        picture = Image.open(io.BytesIO(base64.b64decode(image["png"])))
        check(image["record"]["prompt"] == text, f"an image of {image['record']['prompt']} in place of {text}")
        check(hash_of(picture) == wanted[text, seed], f"other bits for {text} with seed {seed}")

    return ask


def searching(pipeline: Pipeline) -> Ask:
    """Returns a kind of request that searches rows by a text, which are those that Python finds."""
    wanted = {text: facts(search(pipeline, text, k=ROWS)) for text in TEXTS}

    async def ask(visitor: Visitor, number: int) -> None:
        text = TEXTS[number % len(TEXTS)]
        check_rows((await visitor.call("search_rows", text=text, k=ROWS))["rows"], wanted[text], text)

    return ask


def inspecting(pipeline: Pipeline) -> Ask:
    """Returns a kind of request for the rows nearest to a picture, which are those that Python finds."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 48, 48, 3), dtype=np.uint8)
    files = [png(each) for each in pixels]
    wanted = [facts(search(pipeline, picture=Image.fromarray(each), k=ROWS)) for each in pixels]

    async def ask(visitor: Visitor, number: int) -> None:
        number %= len(files)
        answer = await visitor.call("inspect_picture", picture=base64.b64encode(files[number]).decode(), k=ROWS)
        check(answer["record"] is None, "a record of a picture that has none")
        check_rows(answer["nearest"], wanted[number], "a picture")

    return ask


def facts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns what is known of rows, without their pictures."""
    return [row.facts() for row in rows]


def check_rows(answer: list[dict[str, Any]], wanted: list[dict[str, Any]], what: str) -> None:
    """Checks rows that were found, and that each has a picture.

    Raises:
        WrongAnswerError: they are other ones, or a picture is missing.
    """
    pictures = [base64.b64decode(row.pop("png")) for row in answer]
    check(answer == wanted, f"other rows for {what}: {answer}")
    check(all(picture.startswith(PNG) for picture in pictures), f"rows without pictures for {what}")


def describing(pipeline: Pipeline) -> Ask:
    """Returns a kind of request that asks what the database is."""
    database = pipeline.retriever.database

    async def ask(visitor: Visitor, _: int) -> None:
        answer = await visitor.call("describe")
        check(answer["rows"] == len(database) and sum(answer["licences"].values()) == len(database), f"{answer}")

    return ask


def good(pipeline: Pipeline) -> list[Kind]:
    """Returns the kinds of requests that are answered, with 95 % of all requests."""
    return [
        Kind("page", 0.20, page),
        Kind("script", 0.26, asset),
        Kind("settings", 0.10, settings),
        Kind("places", 0.06, places(pipeline)),
        Kind("describe", 0.06, describing(pipeline)),
        Kind("search", 0.12, searching(pipeline)),
        Kind("inspect", 0.03, inspecting(pipeline)),
        Kind("upload", 0.10, upload),
        Kind(SAMPLING, 0.02, sampling(pipeline)),
    ]
