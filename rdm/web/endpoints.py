"""The named endpoints of the page, for ``gradio_client`` and other programs; here those of the first three tabs.

Each is a function of plain values. Its pictures are texts: the content of a PNG file in Base64.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gradio as gr

from rdm.sampling.settings import OPTIONS, Settings
from rdm.sampling.values import REPEATS, TOP_M
from rdm.web.answers import SAMPLING, answering, typed
from rdm.web.asking import LEFT_OUT, Ask, Between, between, jobs
from rdm.web.drawing import Drawn, Job
from rdm.web.editing import Edit, job
from rdm.web.row_endpoints import inspecting, looking, remaking
from rdm.web.studio import Studio
from rdm.web.switches import with_rows
from rdm.web.uploads import received

AT_ONCE = 4  # calls of an endpoint that does not sample


def endpoints(studio: Studio) -> None:
    """Adds the endpoints to the open ``gr.Blocks``."""
    for function in (*creating(studio), *changing(studio), *remaking(studio)):
        gr.api(answering(typed(function)), concurrency_id=SAMPLING, concurrency_limit=1)
    for function in (*describing(studio), *looking(studio), *inspecting(studio)):
        gr.api(answering(typed(function)), concurrency_limit=AT_ONCE)


def creating(studio: Studio) -> list[Callable[..., Any]]:
    """Returns the endpoints of the tab Create."""

    def drawn(ask: Ask, rows: Sequence[int] | None = None) -> dict[str, Any]:
        return _answer(studio, (with_rows(each, rows) for each in jobs(studio, ask)))

    def texts(
        prompts: list[str],
        n: int = 1,
        places: list[str] | None = None,
        k: int | None = None,
        seed: int = 0,
        tokens: str = "neighbours",
        negative: str | None = None,
        rows: list[int] | None = None,
        settings: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Draws n images of each text. With rows, every image has these rows as neighbours, in this order."""
        ask = Ask(
            words=prompts, n=n, places=places or (), k=k, seed=seed, tokens=tokens, negative=negative,
            settings=settings or {},
        )  # fmt: skip
        return drawn(ask, rows)

    def classes(
        names: list[str],
        n: int = 1,
        places: list[str] | None = None,
        k: int | None = None,
        seed: int = 0,
        by: str = "text",
        settings: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Draws n images of each class. Its rows are found by its sentence (by text) or by its label."""
        return drawn(
            Ask(way="class", words=names, n=n, places=places or (), k=k, seed=seed, by=by, settings=settings or {})
        )

    def variations(
        picture: Any,
        n: int = 1,
        places: list[str] | None = None,
        k: int | None = None,
        seed: int = 0,
        tokens: str = "neighbours",
        settings: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Draws n variations of a picture, which is a file (handle_file) or the content of one in Base64."""
        opened = received(picture, studio.limits, studio.folder)
        ask = Ask(
            way="picture", picture=opened, n=n, places=places or (), k=k, seed=seed, tokens=tokens,
            settings=settings or {},
        )  # fmt: skip
        return drawn(ask)

    def popular(
        n: int = 1,
        places: list[str] | None = None,
        k: int | None = None,
        seed: int = 0,
        top_m: float = TOP_M,
        settings: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Draws n images without a question, from a share top_m of the rows: those that are most often neighbours."""
        return drawn(Ask(way="popular", n=n, places=places or (), k=k, seed=seed, top_m=top_m, settings=settings or {}))

    return [texts, classes, variations, popular]


def changing(studio: Studio) -> list[Callable[..., Any]]:
    """Returns the endpoints of the tabs Edit and Between."""

    def edit(
        picture: Any,
        way: str,
        prompt: str | None = None,
        mask: Any = None,
        outpaint: list[int] | None = None,
        strength: float | None = None,
        repeats: int = REPEATS,
        side: int | None = None,
        n: int = 1,
        place: str | None = None,
        k: int | None = None,
        seed: int = 0,
        settings: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Edits a picture: way inpaint (with a mask, white where it is repainted), outpaint, vary or invert."""
        opened, covered = (
            None if each is None else received(each, studio.limits, studio.folder) for each in (picture, mask)
        )
        ask = Edit(
            way=way, picture=opened, mask=covered, outpaint=outpaint or (0, 0, 0, 0), strength=strength, side=side,
            repeats=repeats, prompt=prompt, n=n, place=place, k=k, seed=seed, settings=settings or {},
        )  # fmt: skip
        return _answer(studio, [job(studio, ask)])

    def strip(
        start: Any,
        end: Any,
        n: int = 7,
        place: str | None = None,
        k: int | None = None,
        seed: int = 0,
        settings: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Draws n images that lead from one text to another; a file (handle_file) is a picture in place of a text."""
        ends = [
            received(each, studio.limits, studio.folder) if isinstance(each, dict) else each for each in (start, end)
        ]
        ask = Between(start=ends[0], end=ends[1], n=n, place=place, k=k, seed=seed, settings=settings or {})
        return _answer(studio, [between(studio, ask)])

    return [edit, strip]


def describing(studio: Studio) -> list[Callable[..., Any]]:
    """Returns the endpoints that say what can be asked for."""

    def places() -> list[str]:
        """Returns the databases and the parts of them that neighbours may come from."""
        return studio.places()

    def settings() -> dict[str, Any]:
        """Returns the sampling settings that the model has, each with its default, its values and its meaning."""
        kind, usual = studio.pipeline().model.kind, Settings().for_model(studio.pipeline().model)
        known = {name: each for name, each in OPTIONS.items() if kind in each.kinds and name not in LEFT_OUT}
        return {
            name: {"default": getattr(usual, name), "values": each.value.expected, "what": each.what}
            for name, each in known.items()
        }

    return [places, settings]


def _answer(studio: Studio, asked: Iterable[Job]) -> dict[str, Any]:
    """Draws, and returns the images as JSON."""
    images = [event for event in studio.draw(list(asked)) if isinstance(event, Drawn)]
    return {
        "images": [
            {
                "png": _text(image.png),
                "place": image.place,
                "record": image.record,
                "neighbours": [_text(png) for png in image.neighbours],
            }
            for image in images
        ]
    }


def _text(png: bytes) -> str:
    return base64.b64encode(png).decode()
