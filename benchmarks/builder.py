"""Pictures per second of a database's build, against its embedder alone on pictures that lie in memory."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from ldm.config import read_config
from ldm.util import instantiate_from_config
from rdm.retrieval.builder import build_database
from rdm.retrieval.config import load_embedder

CONFIG = "configs/database/emoji.yaml"
BATCH, SHARD_ROWS, ROUNDS = 256, 1024, 3


def run() -> dict[str, float]:
    """Images per second of both ways, medians of `ROUNDS` alternating rounds over all pictures, and their ratio."""
    config = read_config([CONFIG])
    embedder, source = load_embedder(config["embedder"]), config["database"]["source"]
    images = instantiate_from_config(source)
    batch = torch.stack([images[number]["image"] for number in range(BATCH)])

    @torch.inference_mode()
    def bare() -> None:
        for start in range(0, len(images), BATCH):
            embedder.images(batch[: len(images) - start])

    def build() -> None:
        with tempfile.TemporaryDirectory() as folder:
            options: dict[str, Any] = {"batch_size": BATCH, "shard_rows": SHARD_ROWS, "progress": False}
            build_database(Path(folder) / "database", source, embedder, **options)

    bare()  # the first call of a network is slow
    seconds: dict[str, list[float]] = {"bare": [], "build": []}
    for _ in range(ROUNDS):
        for name, way in (("bare", bare), ("build", build)):
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    fast, ours = (len(images) / statistics.median(times) for times in seconds.values())
    return {
        "embedder_images_per_s": round(fast, 1),
        "build_images_per_s": round(ours, 1),
        "ratio": round(ours / fast, 3),
    }
