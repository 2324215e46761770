"""A small data set of concepts in several styles, and judges of it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from rdm.models.judge import Judge

NETWORK: dict[str, Any] = {"size": 16, "stem": 8, "widths": [8, 16], "depths": [1, 1], "features": 16}
# Two concepts have one name. The last two are held out from the models.
NAMES = {"a": "disc", "b": "bar", "c": "disc", "d": "frame", "e": "sun", "f": "moon"}
HELD_OUT = ("e", "f")


def write_concepts(file: Path, styles: int = 20) -> None:
    """Writes a Parquet file with a picture of each concept in each style.

    Every concept has a square of its own place and colour; styles differ in the brightness of the background.
    """
    rows = []
    for number, (concept, name) in enumerate(NAMES.items()):
        for style in range(styles):
            pixels = np.full((16, 16, 3), 255 - 4 * style, np.uint8)
            top, left = 8 * (number % 2), 5 * (number // 2)
            pixels[top : top + 8, left : left + 5] = np.eye(3, dtype=np.uint8)[number % 3] * 200
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "PNG")
            split = "val" if concept in HELD_OUT else "train"
            image = {"bytes": stream.getvalue(), "path": None}
            rows.append({"image": image, "concept": concept, "name": name, "style": f"style{style}", "split": split})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file)


def concept_configs(file: Path, every: int = 5) -> dict[str, Any]:
    """The configs of the training and the held-out pictures of a file."""

    def part(held_out: bool) -> dict[str, Any]:
        images = {"target": "ldm.data.ParquetImages", "params": {"files": [str(file)], "size": 16}}
        return {"target": "ldm.data.HashSplit", "params": {"held_out": held_out, "every": every, "images": images}}

    return {"train": part(False), "validation": part(True)}


def stubborn_judge(folder: Path, file: Path, order: str) -> Path:
    """Writes a judge that ranks the concepts in the given order, whatever a picture shows; returns its folder."""
    judge = Judge(len(NAMES), **NETWORK)
    judge.concepts = dict(NAMES)
    head: Any = judge.network[-1]
    torch.nn.init.zeros_(head.weight)
    head.bias.data = torch.tensor([float(-order.index(concept)) for concept in NAMES])
    judge.export(folder, concept_configs(file))
    return folder
