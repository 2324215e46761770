"""Counts how many neighbours are different pictures: `python -m benchmarks.different` prints one line of JSON.

For each file of prompts and for the training pictures, it reports the mean number of different pictures among the k
nearest neighbours, and the share of queries whose k neighbours are all different; both with copies and without. Of
the neighbours of training pictures it also reports the share that has the outline of the picture itself.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from ldm.files import read_text
from ldm.util import evenly, instantiate_from_config
from rdm.loading import Loaded, load
from rdm.retrieval.database.outlines import Outlines, outline
from rdm.retrieval.embedder import embed_images
from rdm.retrieval.neighbours.search import Drawings, search_without_copies
from rdm.retrieval.queries import text_queries
from rdm.retrieval.retriever import Retriever

PROMPTS = ("models/rdm/emoji/prompts-train.txt", "models/rdm/emoji/prompts-val.txt")


def counted(rows: Iterable[np.ndarray], outlines: Outlines) -> dict[str, float]:
    """Returns the figures of neighbours, one array of k rows for each query."""
    counts = [(len(outlines.different(line, len(line))), len(line)) for line in rows]
    return {
        "different": round(float(np.mean([found for found, _ in counts])), 2),
        "all_different": round(float(np.mean([found == k for found, k in counts])), 3),
    }


def of_texts(loaded: Loaded, file: str, k: int, outlines: Outlines) -> dict[str, Any]:
    """Returns the figures of the neighbours of the texts in the lines of a file."""
    prompts = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    given = loaded.retriever
    report: dict[str, Any] = {"n": len(prompts)}
    for name, used in (("with_copies", None), ("without", outlines)):
        retriever = Retriever(lambda: given.embedder, given.database, lambda: given.index, given.rows, used)
        report[name] = counted(retriever(text_queries(given.embedder, prompts), k).rows, outlines)
    return report


def of_pictures(loaded: Loaded, n: int, k: int, outlines: Outlines) -> dict[str, Any]:
    """Returns the figures of the neighbours of training pictures, as tables have them."""
    images, retriever = instantiate_from_config(loaded.data.dataset_configs["train"]), loaded.retriever
    items = [images[number] for number in evenly(len(images), min(n, len(images)))]
    ids, own = [item["id"] for item in items], [outline(item["image"]) for item in items]
    vectors = embed_images(retriever.embedder, [item["image"] for item in items], ids)
    report: dict[str, Any] = {"n": len(items)}
    for name, drawings in (("with_copies", None), ("without", Drawings(outlines, own))):
        rows = search_without_copies(
            vectors, ids, retriever.database, retriever.index, k, loaded.data.near_duplicate, drawings=drawings
        )
        alike = [outlines[row] @ mine >= outlines.least for line, mine in zip(rows, own, strict=True) for row in line]
        report[name] = {**counted(rows, outlines), "of_the_picture": round(float(np.mean(alike)), 3)}
    return report


def main() -> None:
    """Counts for the model of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ckpt", default="models/rdm/emoji", help="checkpoint or run folder")
    parser.add_argument("--database", help="another database than the model's")
    parser.add_argument("--from-file", nargs="+", default=PROMPTS, help="files with one prompt in each line")
    parser.add_argument("--knn", type=int, default=4, help="number of neighbours")
    parser.add_argument("--same_outline", type=float, default=0.9, help="correlation from which on pictures are copies")
    parser.add_argument("--n", type=int, default=1000, help="largest number of training pictures")
    args = parser.parse_args()
    loaded = load(args.ckpt, args.database)
    outlines = Outlines(loaded.retriever.database, args.same_outline)
    report = {file: of_texts(loaded, file, args.knn, outlines) for file in args.from_file}
    report["training pictures"] = of_pictures(loaded, args.n, args.knn, outlines)
    print(json.dumps({"same_outline": args.same_outline, "knn": args.knn, **report}))


if __name__ == "__main__":
    main()
