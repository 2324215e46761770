"""Measures pictures per second of the Parquet data set, in comparison with Pillow decoding bytes in memory."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from ldm.data import ParquetImages
from ldm.pictures import from_uint8

FILE = Path(__file__).parents[1] / "data" / "emoji" / "noto.parquet"
ROUNDS = 5


def run() -> dict[str, float]:
    """Returns the images per second of both, as medians of `ROUNDS` alternating rounds over 1,566 pictures."""
    encoded = [row["bytes"] for row in pq.read_table(FILE, columns=["image"]).column("image").to_pylist()]
    images = ParquetImages(str(FILE), 64)

    def plain() -> None:
        for data in encoded:
            with Image.open(io.BytesIO(data)) as image:
                from_uint8(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1))

    def dataset() -> None:
        for index in range(len(images)):
            images[index]

    seconds: dict[Callable[[], None], list[float]] = {plain: [], dataset: []}
    for _ in range(ROUNDS):
        for way, times in seconds.items():
            start = time.perf_counter()
            way()
            times.append(time.perf_counter() - start)
    fast = len(encoded) / statistics.median(seconds[plain])
    ours = len(images) / statistics.median(seconds[dataset])
    return {
        "pillow_images_per_s": round(fast, 1),
        "parquet_images_per_s": round(ours, 1),
        "ratio": round(ours / fast, 3),
    }
