"""Measures how many pictures per second a database build takes in, in comparison with its embedder alone.

The embedder alone gets pictures that are already in memory.

`python -m benchmarks.builder --embedder FOLDER --files PATH` measures another CLIP and other Parquet files.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from ldm.config import read_config
from ldm.util import instantiate_from_config
from rdm.retrieval.builder.build import build_database
from rdm.retrieval.config import embedder_config, load_embedder

CONFIG = "configs/database/emoji.yaml"
BATCH, SHARD_ROWS, ROUNDS = 256, 1024, 3


def compare(embedder_of: dict[str, Any], source: dict[str, Any], rounds: int) -> dict[str, float]:
    """Returns the images per second of embedder and build, as medians of alternating rounds, and their ratio."""
    embedder, images = load_embedder(embedder_of), instantiate_from_config(source)
    batch = torch.stack([images[number]["image"] for number in range(BATCH)])

    @torch.inference_mode()
    def bare() -> None:
        for start in range(0, len(images), BATCH):
            embedder.images(batch[: len(images) - start])

    def build() -> None:
        with tempfile.TemporaryDirectory() as folder:
            options: dict[str, Any] = {"batch_size": BATCH, "shard_rows": SHARD_ROWS, "progress": False}
            build_database(Path(folder) / "database", source, embedder, **options)

    with torch.inference_mode():
        embedder.images(batch)  # warm-up, because the first call of a network is slow
    seconds: dict[str, list[float]] = {"bare": [], "build": []}
    for _ in range(rounds):
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


def run() -> dict[str, float]:
    """Returns the speed for the emoji database."""
    config = read_config([CONFIG])
    return compare(config["embedder"], config["database"]["source"], ROUNDS)


def main() -> None:
    """Measures the embedder and the files of the command line."""
    config = read_config([CONFIG])
    source = config["database"]["source"]
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--embedder", default=config["embedder"]["params"]["model"], help="CLIP model: folder in open_clip's format"
    )
    p.add_argument("--files", default=source["params"]["files"], help="Parquet files with the pictures")
    p.add_argument(
        "--rounds", type=int, default=ROUNDS, help=f"number of rounds, of which the median is taken; default: {ROUNDS}"
    )
    args = p.parse_args()
    source = {**source, "params": {**source["params"], "files": args.files}}
    print(json.dumps(compare(embedder_config(args.embedder), source, args.rounds)))


if __name__ == "__main__":
    main()
