"""How often EfficientNet-Lite0 recognises pictures that are named like a class of ImageNet.

``python -m benchmarks.eyes FILE.parquet ... [--n 30]`` takes the first n pictures of each such name from Parquet files
with the columns ``name`` and ``image``, and prints one line of JSON: for each name, how many of them the network names
rightly (``top1``), and for how many the name is among its five likeliest classes (``top5``).
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from ldm.command_line import positive
from rdm.evaluate.features import FeatureNetwork, feature_network


def classes() -> dict[str, int]:
    """Returns the numbers of ImageNet's classes by their first names, in lower case."""
    from timm.data import ImageNetInfo

    known = ImageNetInfo()
    return {known.index_to_description(number).split(",")[0].lower(): number for number in range(1000)}


def pictures(files: Sequence[Path], known: dict[str, int], n: int) -> Iterator[tuple[str, Tensor]]:
    """Yields the names and pictures ``[1, 3, H, W]`` in [-1, 1] of the first n rows of each name that is a class."""
    taken: dict[str, int] = {}
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(256, columns=["name", "image"]):
            for row in batch.to_pylist():
                name = str(row["name"]).lower()
                if name in known and taken.get(name, 0) < n:
                    taken[name] = taken.get(name, 0) + 1
                    pixels = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")).copy()
                    yield name, torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1


def measure(files: Sequence[Path], network: FeatureNetwork, n: int) -> dict[str, dict[str, int]]:
    """Returns the number of pictures, and of those that are recognised, for each name."""
    known, found = classes(), dict[str, dict[str, int]]()
    for name, picture in pictures(files, known, n):
        _, logits = network.features(picture)
        if logits is None:
            raise ValueError(f"{network.name} is no classifier; name efficientnet_lite0 or one of torchvision's")
        likeliest = logits[0].topk(5).indices.tolist()
        row = found.setdefault(name, {"n": 0, "top1": 0, "top5": 0})
        row["n"] += 1
        row["top1"] += likeliest[0] == known[name]
        row["top5"] += known[name] in likeliest
    return found


def main() -> None:
    """Measures the files of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="Parquet files with the columns name and image")
    parser.add_argument("--n", type=positive, default=30, help="most pictures of a name; default: 30")
    parser.add_argument("--network", default="efficientnet_lite0", help="a classifier of scripts/evaluate.py")
    args = parser.parse_args()
    of_each = measure(args.files, feature_network(args.network), args.n)
    total = {key: sum(row[key] for row in of_each.values()) for key in ("n", "top1", "top5")}
    print(json.dumps({"benchmark": "eyes", "network": args.network, **total, "names": of_each}))


if __name__ == "__main__":
    main()
