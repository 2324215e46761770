"""Draws the first picture of the README: ``python -m benchmarks.overview``, with seeds from 0 on and two neighbours.

Samples from texts, of classes and from popular rows stand to the left of the neighbours that they were conditioned on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from ldm.files import atomic_path
from ldm.pictures import as_picture, image_grid, with_channels
from rdm.loading import Loaded, load
from rdm.retrieval.database.pictures import framed_pictures
from rdm.sampling import ways
from rdm.sampling.request import Request
from rdm.sampling.samples import sample
from rdm.sampling.settings import Settings

PROMPTS = ("a red guitar", "a cat", "a slice of pizza", "a butterfly", "a yellow car", "a house")
CLASSES = ("animal-bird", "food-fruit", "sky-weather")
ACROSS, K = 3, 2  # samples in a row, and neighbours of each
TITLE, GAP, BETWEEN = 20, 12, 24  # pixels: height of a title, gap between sections, gap between columns
SECTIONS: dict[str, Callable[[Loaded], Request]] = {
    f"text: {', '.join(PROMPTS)}": lambda loaded: ways.texts(loaded, PROMPTS, k=K),
    f"class: {', '.join(CLASSES)}": lambda loaded: ways.classes(loaded, [n for n in CLASSES for _ in range(2)], k=K),
    "unconditional, from popular rows": lambda loaded: ways.popular(loaded, 6, k=K),
}


def section(loaded: Loaded, request: Request) -> Image.Image:
    """Returns a grid of samples, each to the left of its neighbours."""
    made = sample(loaded, request, Settings(copy_threshold=None))
    images = with_channels(made.images, 3)
    shown = framed_pictures(loaded.retriever.database, request.retrieved.rows, *images.shape[2:])
    tiles = torch.cat([images[:, None], shown], dim=1)
    columns = [as_picture(image_grid({"": tiles[place::ACROSS]})) for place in range(ACROSS)]
    width = sum(column.width + BETWEEN for column in columns) - BETWEEN
    page = Image.new("RGB", (width, columns[0].height), "white")
    for place, column in enumerate(columns):
        page.paste(column, (place * (column.width + BETWEEN), 0))
    return page


def main() -> None:
    """Draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", default="models/rdm/emoji", help="checkpoint or run folder")
    parser.add_argument("--output", type=Path, default=Path("docs/overview.png"), help="the PNG file")
    args = parser.parse_args()
    loaded = load(args.ckpt)
    grids = {title: section(loaded, ask(loaded)) for title, ask in SECTIONS.items()}
    height = sum(TITLE + grid.height + GAP for grid in grids.values()) - GAP
    page, top = Image.new("RGB", (max(grid.width for grid in grids.values()), height), "white"), 0
    draw = ImageDraw.Draw(page)
    for title, grid in grids.items():
        draw.text((2, top + 3), title, fill="black")
        page.paste(grid, (0, top + TITLE))
        top += TITLE + grid.height + GAP
    with atomic_path(args.output) as temporary:
        page.save(temporary, format="png", optimize=True)
    print(args.output)


if __name__ == "__main__":
    main()
