"""One picture that compares models: a row for each query, and beside each other what several models make of it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ldm.files import atomic_path
from ldm.pictures import as_picture, image_grid, with_channels
from ldm.util import evenly
from rdm.loading import Loaded
from rdm.retrieval.database.pictures import framed_pictures
from rdm.sampling.adapt import Adaptation
from rdm.sampling.request import Request, together
from rdm.sampling.samples import sample
from rdm.sampling.settings import Settings
from rdm.sampling.ways import rows, texts

ROWS, SAMPLES = 8, 2  # queries, and images of each
LABEL, LINE, LETTERS = 110, 12, 18  # width of the labels and height of a line in pixels; letters in a line
GAP = 10  # pixels between panels


class Query(NamedTuple):
    """A row of the picture.

    Attributes:
        label: what is asked for.
        ask: makes the request for n images: (model and database, n) -> request.
    """

    label: str
    ask: Callable[[Loaded, int], Request]


class Panel(NamedTuple):
    """A part of the picture with a title above it.

    Attributes:
        title: what it shows.
        images: ``[rows, n, C, H, W]`` in [-1, 1].
    """

    title: str
    images: Tensor


def sampled(
    loaded: Loaded, queries: Sequence[Query], title: str, n: int = SAMPLES, neighbours: bool = True
) -> list[Panel]:
    """Returns a panel of images of each query and, before it, one of the neighbours of the first of them.

    Args:
        loaded: model and database.
        queries: the queries.
        title: of the images.
        n: number of images of each query.
        neighbours: whether there is a panel of neighbours.
    """
    asked = [query.ask(loaded, n) for query in queries]
    alike = [replace(each, queries=None, query_tokens=None, prompts=None) for each in asked]  # only some ways have them
    made = sample(loaded, together(alike), Settings(copy_threshold=None))
    images = with_channels(made.images, 3).unflatten(0, (len(queries), n))
    shown = [Panel(title, images)]
    if neighbours:
        rows = made.request.retrieved.rows[::n]
        shown.insert(0, Panel("neighbours", framed_pictures(loaded.retriever.database, rows, *images.shape[3:])))
    return shown


def own_queries(adaptation: Adaptation, count: int = ROWS) -> tuple[list[Query], Tensor]:
    """Returns queries about a user's pictures, and the picture of each, ``[count, 1, C, H, W]``.

    At most half of them are captions. The others are pictures, of which the model sees the neighbours alone.

    Args:
        adaptation: the adaptation to the pictures.
        count: number of queries.
    """
    pictures = adaptation.pictures
    by_text = pictures.distinct(count // 2)
    by_picture = evenly(len(pictures.images), min(count - len(by_text), len(pictures.images)))
    prompts = [pictures.captions[each] for each in by_text]
    queries = [Query(f'"{prompt}"', asking(texts, prompt)) for prompt in prompts]
    queries += [Query(Path(pictures.images.metadata(each)["id"]).name, _of_picture(each)) for each in by_picture]
    return queries, torch.stack([pictures.images[each]["image"] for each in [*by_text, *by_picture]])[:, None]


def asking(way: Callable[..., Request], what: str, k: int | None = None) -> Callable[[Loaded, int], Request]:
    """Returns what makes a request of :func:`texts` or :func:`classes` for n images of one text or class.

    Args:
        way: that function.
        what: the text or class.
        k: number of neighbours of each image; None takes as many as in training.
    """
    return lambda loaded, n: way(loaded, [what] * n, k=k)


def _of_picture(number: int) -> Callable[[Loaded, int], Request]:
    """Returns what asks for images with the neighbours of a training picture, among which it is not itself."""
    return lambda loaded, n: rows(loaded, loaded.data.table("train").nearest(number, loaded.k).tolist(), n)


def page(labels: Sequence[str], panels: Sequence[Panel]) -> Image.Image:
    """Returns the picture: a label to the left of each row, and the panels to the right with their titles."""
    grids = [as_picture(image_grid({"": panel.images})) for panel in panels]
    titles = [textwrap.wrap(panel.title, max(8, grid.width // 6)) for panel, grid in zip(panels, grids, strict=True)]
    top = LINE * max(map(len, titles)) + 4
    width = LABEL + sum(GAP + grid.width for grid in grids)
    picture = Image.new("RGB", (width, top + grids[0].height), "white")
    draw = ImageDraw.Draw(picture)
    step = grids[0].height / len(labels)
    for number, label in enumerate(labels):
        for line, words in enumerate(textwrap.wrap(label, LETTERS)[: max(1, int(step) // LINE)]):
            draw.text((3, top + number * step + LINE * line + 2), words, fill="black")
    left = LABEL
    for title, grid in zip(titles, grids, strict=True):
        left += GAP
        for line, words in enumerate(title):
            draw.text((left + 2, LINE * line + 1), words, fill="black")
        picture.paste(grid, (left, top))
        left += grid.width
    return picture


def save_page(labels: Sequence[str], panels: Sequence[Panel], file: Path) -> Path:
    """Writes the picture of :func:`page` as a PNG file and returns its path."""
    with atomic_path(file) as temporary:
        page(labels, panels).save(temporary, format="png")
    return file
