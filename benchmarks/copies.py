"""Where the threshold of copies lies: `python -m benchmarks.copies` prints one JSON line about a trained model.

``held_out`` is how like the real pictures of the validation set are to their nearest rows, own rows and near-duplicates
left out, as in the neighbour tables: what a threshold should let pass. ``copied`` is the same of training pictures that
went through the first stage, the most faithful copies that its model can make, with all rows: what it should find.
``shares`` are the parts of both at or above each threshold.
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
    """Returns the likeness of validation pictures to the nearest other row, ``[n]``."""
    images, found = instantiate_from_config(loaded.data.dataset_configs["validation"]), []
    retriever, near = loaded.retriever, loaded.data.near_duplicate
    for number in evenly(len(images), min(n, len(images))):
        item = images[number]
        vector = embed_images(retriever.embedder, [item["image"]], [item["id"]])
        row = search_without_copies(vector, [item["id"]], retriever.database, retriever.index, 1, near)[0]
        other = retriever.database.embeddings(row)
        found.append(float(vector[0] @ other[0] / np.linalg.norm(vector) / np.linalg.norm(other)))
    return np.array(found)


def copied(loaded: Loaded, n: int) -> np.ndarray:
    """Returns the likeness of training pictures that went through the first stage to the nearest row, ``[n]``."""
    images, found = instantiate_from_config(loaded.data.dataset_configs["train"]), []
    copies, nothing = FirstStageCopies(images, loaded), np.zeros((0, loaded.retriever.database.dim), np.float32)
    for number in evenly(len(images), min(n, len(images))):
        found.append(compare(copies[number]["image"], nothing, loaded.retriever, 1.0).similarity)
    return np.array(found)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ckpt", default="models/rdm/emoji", help="checkpoint or run folder")
    parser.add_argument("--n", type=int, default=1000, help="pictures of each kind, at most")
    args = parser.parse_args()
    loaded = load(args.ckpt)
    values = {"held_out": held_out(loaded, args.n), "copied": copied(loaded, args.n)}
    report = {
        name: {"n": len(likeness), **{str(q): round(float(np.quantile(likeness, q)), 4) for q in QUANTILES}}
        for name, likeness in values.items()
    }
    shares = {
        str(threshold): {name: round(float(np.mean(likeness >= threshold)), 4) for name, likeness in values.items()}
        for threshold in THRESHOLDS
    }
    print(json.dumps({"model": str(loaded.path), **report, "shares": shares}))


if __name__ == "__main__":
    main()
