"""Drawings with a black outline, in any colour: two of one shape are copies of one another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

SHAPES: dict[str, tuple[tuple[float, float], ...]] = {
    "square": ((0.1, 0.1), (0.9, 0.1), (0.9, 0.9), (0.1, 0.9)),
    "triangle": ((0.5, 0.05), (0.95, 0.95), (0.05, 0.95)),
    "lozenge": ((0.5, 0.05), (0.95, 0.5), (0.5, 0.95), (0.05, 0.5)),
    "bar": ((0.05, 0.4), (0.95, 0.4), (0.95, 0.6), (0.05, 0.6)),
    "post": ((0.4, 0.05), (0.6, 0.05), (0.6, 0.95), (0.4, 0.95)),
    "arrow": ((0.1, 0.5), (0.5, 0.1), (0.5, 0.35), (0.9, 0.35), (0.9, 0.65), (0.5, 0.65), (0.5, 0.9)),
    "corner": ((0.1, 0.1), (0.3, 0.1), (0.3, 0.7), (0.9, 0.7), (0.9, 0.9), (0.1, 0.9)),
    "slope": ((0.05, 0.05), (0.95, 0.95), (0.95, 0.7), (0.3, 0.05)),
}
COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 230), "line": (255, 255, 255)}


def drawing(shape: str, colour: str, size: int = 32) -> np.ndarray:
    """A shape on white, ``[S, S, 3] uint8``."""
    image = Image.new("RGB", (4 * size, 4 * size), "white")
    points = [(4 * size * x, 4 * size * y) for x, y in SHAPES[shape]]
    ImageDraw.Draw(image).polygon(points, fill=COLOURS[colour], outline="black", width=size // 5)
    return np.asarray(image.resize((size, size), Image.Resampling.BOX))


def write_drawings(folder: Path, colours: Sequence[str], size: int = 32, shapes: Sequence[str] = ()) -> dict[str, Any]:
    """Writes each shape in each colour as ``COLOUR/SHAPE.png`` and returns the config of the data set."""
    for colour in colours:
        (folder / colour).mkdir(parents=True, exist_ok=True)
        for shape in shapes or SHAPES:
            Image.fromarray(drawing(shape, colour, size)).save(folder / colour / f"{shape}.png")
    return {"target": "ldm.data.ImageFolder", "params": {"root": str(folder), "size": size}}
