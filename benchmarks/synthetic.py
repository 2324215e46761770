"""Databases of made-up vectors that lie as CLIP's do, written block by block and the same on every machine.

Images: clusters of intrinsic dimension 48, each in directions of its own, all within one cone. Texts: pictures moved
into another cone (Liang et al. 2022, "Mind the gap"), each a bit further in a direction of its own. Loose texts: there
is little of the picture in them, and nothing of what all pictures share; a trial of what an index does then.
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
    """Where the vectors lie; the same for the same seed and width.

    Args:
        dim: width of a vector, D.
        seed: of everything.
        clusters: how many; a database wants some 50 rows of each, or a row has no neighbours to speak of.
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
            block: number of the block; what it holds depends on nothing else.
            rows: how many, the first of the block.
        """
        rng = np.random.default_rng([self.seed, self.dim, block])
        clusters = rng.integers(0, len(self.centres), SHARD_ROWS)[:rows]
        within = rng.standard_normal((SHARD_ROWS, len(self.basis)), dtype=np.float32)[:rows] @ self.basis
        noise = rng.standard_normal((SHARD_ROWS, self.dim), dtype=np.float32)[:rows] * (0.1 / np.sqrt(self.dim))
        lengths = rng.uniform(8, 12, SHARD_ROWS).astype(np.float32)[:rows, None]
        turns = (np.arange(self.dim) + clusters[:, None]) % self.dim  # each cluster's directions, by turning the axes
        unit = self.cone + self.centres[clusters] + 0.8 * np.take_along_axis(within, turns, 1) + noise
        return unit / np.linalg.norm(unit, axis=1, keepdims=True) * lengths, clusters

    def queries(self, kind: str, count: int) -> np.ndarray:
        """Returns queries ``[count, D] float32`` that are no rows of a database.

        Args:
            kind: ``image``, further pictures; ``text`` and ``loose``, as texts of further pictures may lie.
            count: at most the rows of a shard.
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
        """Returns a database of so many rows, written to ``folder`` unless it is there; a killed write continues."""

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
    """Returns a database made of blocks of vectors, each a shard; complete shards that are there already are kept.

    Args:
        folder: where it lies.
        block: gives vectors ``[n, D]`` and metadata columns of block i.
        blocks: how many.
        dim: D.
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
