"""One shard of a database build: a range of source pictures becomes embeddings and metadata."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rdm.retrieval.builder.reading import Chunk, batches
from rdm.retrieval.database.shards import metadata_schema, write_shard
from rdm.retrieval.embedder import Embedder, embed_ahead, to_half

SHARD_ROWS = 65536


@dataclass(frozen=True)
class Work:
    """How a build is carried out; none of it changes a byte of the database but ``shard_rows`` and ``batch_size``.

    Attributes:
        batch_size: patches embedded at once.
        shard_rows: pictures of the source per shard; a build that is continued keeps its own.
        workers: processes that read pictures ahead; None for one per core, at most 8.
        max_broken: unreadable pictures to tolerate; None for what the source tolerates.
        progress: show a bar.
        ray: address of a Ray cluster whose machines embed, see :mod:`rdm.retrieval.builder.on_ray`; None for this
            process.
    """

    batch_size: int = 256
    shard_rows: int = SHARD_ROWS
    workers: int | None = None
    max_broken: int | None = None
    progress: bool = True
    ray: str | None = None

    def check(self) -> None:
        """Raises ValueError where a number is out of range."""
        if self.batch_size < 1 or self.shard_rows < 1:
            raise ValueError(
                f"got batch_size={self.batch_size}, shard_rows={self.shard_rows}, expected both at least 1"
            )
        if min(self.workers or 0, self.max_broken or 0) < 0:
            raise ValueError(
                f"got workers={self.workers}, max_broken={self.max_broken}, expected neither to be negative"
            )

    def readers(self, chunks: int, cores: int) -> int:
        """Returns how many processes read so many chunks ahead on a machine."""
        return min(8, cores, chunks // 8) if self.workers is None else self.workers


@dataclass(frozen=True)
class ShardContent:
    """What a shard will hold: vectors ``[n, D] float16``, n rows of metadata, and the pictures that gave none."""

    vectors: np.ndarray
    table: pa.Table
    unreadable: list[dict[str, Any]]
    without: int


def embed_shard(chunks: Iterable[Chunk], embedder: Embedder, batch_size: int, plan: Mapping[str, Any]) -> ShardContent:
    """Returns the rows of some chunks; a function of nothing but its arguments.

    Raises:
        ValueError: a vector is not finite in float16.
    """
    schema, seen = metadata_schema(plan["columns"]), []

    def noted() -> Iterator[Chunk]:
        for chunk in chunks:
            seen.append((chunk.faults, chunk.without))
            yield chunk

    halves, tables = [np.empty((0, embedder.dim), np.float16)], []
    for vectors, entries in embed_ahead(embedder, batches(noted(), batch_size)):
        halves.append(to_half(vectors, [entry["image_id"] for entry in entries]))
        tables.append(pa.RecordBatch.from_pylist(entries, schema))
    faults = [fault for found, _ in seen for fault in found]
    table = pa.Table.from_batches(tables, schema)
    return ShardContent(np.concatenate(halves), table, faults, sum(without for _, without in seen))


def write_content(path: Path, plan: Mapping[str, Any], start: int, content: ShardContent) -> dict[str, Any] | None:
    """Writes the shard that begins at picture ``start``; returns its line of the table, None without rows."""
    if not len(content.vectors):
        return None
    name = f"{plan['first'] + start // plan['shard_rows']:05d}"
    return write_shard(path, name, content.vectors, content.table)
