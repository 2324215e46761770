"""Measures similarities for the threshold of the copy check: `python -m benchmarks.copies` prints one line of JSON.

``held_out`` is the similarity of real validation pictures to their nearest database rows. Their own rows and
near-duplicates are left out, as in the neighbour tables. A threshold should not flag these pictures. ``copied`` is the
similarity of reconstructed training pictures to their nearest rows, with no row left out. They are the most faithful
copies that the model can produce, and a threshold should flag them. ``shares`` are the shares of both at or above each
threshold.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from ldm.util import evenly, instantiate_from_config
from rdm.evaluate.sources import FirstStageCopies
from rdm.loading import Loaded, load
from rdm.retrieval.embedder import embed_images
from rdm.retrieval.neighbours.search import search_without_copies
from rdm.sampling.copies import compare

QUANTILES = (0.01, 0.05, 0.1, 0.5, 0.9, 0.95, 0.99)
THRESHOLDS = (0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.995)


def held_out(loaded: Loaded, n: int) -> np.ndarray:
    """Returns the similarity of validation pictures to the nearest row of another picture, ``[n]``."""
    images, similarities = instantiate_from_config(loaded.data.dataset_configs["validation"]), []
    retriever, near = loaded.retriever, loaded.data.near_duplicate
    for number in evenly(len(images), min(n, len(images))):
        item = images[number]
        vector = embed_images(retriever.embedder, [item["image"]], [item["id"]])
        row = search_without_copies(vector, [item["id"]], retriever.database, retriever.index, 1, near)[0]
        other = retriever.database.embeddings(row)
        similarities.append(float(vector[0] @ other[0] / np.linalg.norm(vector) / np.linalg.norm(other)))
    return np.array(similarities)


def copied(loaded: Loaded, n: int) -> np.ndarray:
    """Returns the similarity of reconstructed training pictures to the nearest row, ``[n]``."""
    images, similarities = instantiate_from_config(loaded.data.dataset_configs["train"]), []
    copies, no_rows = FirstStageCopies(images, loaded), np.zeros((0, loaded.retriever.database.dim), np.float32)
    for number in evenly(len(images), min(n, len(images))):
        similarities.append(compare(copies[number]["image"], no_rows, loaded.retriever, 1.0).similarity)
    return np.array(similarities)


def main() -> None:
    """Measures the model of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ckpt", default="models/rdm/emoji", help="checkpoint or run folder")
    parser.add_argument(
        "--n", type=int, default=1000, help="largest number of validation pictures and of training pictures"
    )
    args = parser.parse_args()
    loaded = load(args.ckpt)
    values = {"held_out": held_out(loaded, args.n), "copied": copied(loaded, args.n)}
    report = {
        name: {"n": len(similarity), **{str(q): round(float(np.quantile(similarity, q)), 4) for q in QUANTILES}}
        for name, similarity in values.items()
    }
    shares = {
        str(threshold): {name: round(float(np.mean(similarity >= threshold)), 4) for name, similarity in values.items()}
        for threshold in THRESHOLDS
    }
    print(json.dumps({"model": str(loaded.path), **report, "shares": shares}))


if __name__ == "__main__":
    main()
