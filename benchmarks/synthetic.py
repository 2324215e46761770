"""Synthetic databases with vectors that are distributed like those of CLIP, the same on every machine.

Images form clusters of intrinsic dimension 48 in different directions, all within one cone. Texts are images that are
moved to another cone (Liang et al. 2022, "Mind the gap"), each with some noise. Loose texts have little in common with
their image and nothing with the cone of all images, to test an index with hard queries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ldm.files import atomic_path, file_hash, write_json
from rdm.retrieval.database.rows import CARD, FORMAT, RetrievalDatabase, shard_file

SHARD_ROWS = 65536
CLUSTERS, INTRINSIC = 20_000, 48
CLASSES, LICENCES = 1000, ("CC0", "CC-BY", "CC-BY-SA")
EMBEDDER = {"name": "synthetic", "fingerprint": "synthetic-1"}


class Space:
    """A distribution of vectors that depends on its seed and width alone.

    Args:
        dim: width of a vector, D.
        seed: the seed.
        clusters: number of clusters; a database should have about 50 rows in each, so that rows have near neighbours.
    """

    def __init__(self, dim: int = 512, seed: int = 0, clusters: int = CLUSTERS) -> None:
        rng = np.random.default_rng([seed, dim])
        self.dim, self.seed = dim, seed
        self.centres = rng.standard_normal((clusters, dim), dtype=np.float32) / np.sqrt(dim)
        self.basis = rng.standard_normal((min(INTRINSIC, dim), dim), dtype=np.float32) / np.sqrt(INTRINSIC * dim)
        self.cone, self.gap = rng.standard_normal((2, dim), dtype=np.float32) / np.sqrt(dim)

    def images(self, block: int, rows: int = SHARD_ROWS) -> tuple[np.ndarray, np.ndarray]:
        """Returns raw vectors ``[rows, D] float32`` of one block, and the cluster of each ``[rows] int64``.

        Args:
            block: number of the block, which alone decides its contents.
            rows: number of rows, from the first of the block on.
        """
        rng = np.random.default_rng([self.seed, self.dim, block])
        clusters = rng.integers(0, len(self.centres), SHARD_ROWS)[:rows]
        within = rng.standard_normal((SHARD_ROWS, len(self.basis)), dtype=np.float32)[:rows] @ self.basis
        noise = rng.standard_normal((SHARD_ROWS, self.dim), dtype=np.float32)[:rows] * (0.1 / np.sqrt(self.dim))
        lengths = rng.uniform(8, 12, SHARD_ROWS).astype(np.float32)[:rows, None]
        turns = (
            np.arange(self.dim) + clusters[:, None]
        ) % self.dim  # rotates the axes to give each cluster its directions
        unit = self.cone + self.centres[clusters] + 0.8 * np.take_along_axis(within, turns, 1) + noise
        return unit / np.linalg.norm(unit, axis=1, keepdims=True) * lengths, clusters

    def queries(self, kind: str, count: int) -> np.ndarray:
        """Returns queries ``[count, D] float32`` that are not rows of a database.

        Args:
            kind: ``image`` for further images, ``text`` or ``loose`` for texts of further images.
            count: number of queries, at most the rows of a shard.
        """
        images, _ = self.images(2**31, count)
        if kind == "image":
            return images
        unit = images / np.linalg.norm(images, axis=1, keepdims=True)
        noise = np.random.default_rng([self.seed, self.dim, 2**31]).standard_normal(images.shape, dtype=np.float32)
        noise /= np.sqrt(np.float32(self.dim))
        if kind == "text":
            return unit + self.gap + 0.25 * noise
        return 0.6 * (unit - self.cone / np.sqrt(np.float32(3))) + self.gap + 0.5 * noise

    def write(self, folder: Path, rows: int) -> RetrievalDatabase:
        """Writes a database with a number of rows to ``folder``, unless it exists, and returns it.

        An interrupted write continues where it stopped.
        """

        def block(number: int) -> tuple[np.ndarray, dict[str, Any]]:
            first = number * SHARD_ROWS
            vectors, clusters = self.images(number, min(SHARD_ROWS, rows - first))
            numbers = np.arange(first, first + len(vectors))
            columns = {
                "image_id": pa.array(numbers).cast(pa.string()),
                "class_id": pa.array(clusters % CLASSES).cast(pa.string()),
                "licence": pa.array([LICENCES[n % len(LICENCES)] for n in numbers.tolist()]),
            }
            return vectors, columns

        return write_database(folder, block, -(-rows // SHARD_ROWS), self.dim)


def write_database(
    folder: Path, block: Callable[[int], tuple[np.ndarray, Mapping[str, Any]]], blocks: int, dim: int
) -> RetrievalDatabase:
    """Writes a database with one shard for each block of vectors, and returns it; existing shards are kept.

    Args:
        folder: folder of the database.
        block: returns the vectors ``[n, D]`` and the metadata columns of a block by its number.
        blocks: number of blocks.
        dim: width of a vector, D.
    """
    if (folder / CARD).is_file():
        return RetrievalDatabase.open(folder)
    shards = []
    for number in range(blocks):
        name = f"{number:05d}"
        files = {kind: shard_file(folder, kind, name) for kind in ("embeddings", "metadata")}
        if not all(file.is_file() for file in files.values()):
            vectors, columns = block(number)
            with atomic_path(files["embeddings"]) as temporary, temporary.open("wb") as stream:
                np.save(stream, vectors.astype(np.float16), allow_pickle=False)
            with atomic_path(files["metadata"]) as temporary:
                pq.write_table(pa.table(dict(columns)), temporary, compression="zstd")
        rows = len(np.load(files["embeddings"], mmap_mode="r"))
        shards.append({"name": name, "rows": rows, **{kind: file_hash(file) for kind, file in files.items()}})
    card = {"format": FORMAT, "embedder": EMBEDDER, "dim": dim, "dtype": "float16", "patches": {"policy": "whole"}}
    write_json(folder / CARD, {**card, "source": {}, "shards": shards, "rows": sum(s["rows"] for s in shards)})
    return RetrievalDatabase.open(folder)
