"""One shard of a database build: embeds a range of the source's pictures and writes embeddings and metadata."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from rdm.retrieval.builder.plan import WrittenShard
from rdm.retrieval.builder.read_ahead import Chunk, batches
from rdm.retrieval.builder.work import Build
from rdm.retrieval.database.shards import metadata_schema, write_shard
from rdm.retrieval.embedder import embed_ahead, to_half


@dataclass(frozen=True)
class ShardContent:
    """The content of a shard.

    Attributes:
        vectors: ``[n, D] float16``.
        table: n rows of metadata.
        unreadable: ``item``, ``uri`` and ``reason`` of each picture that cannot be read.
        without: number of pictures that the policy takes no patch of.
    """

    vectors: np.ndarray
    table: pa.Table
    unreadable: list[dict[str, Any]]
    without: int


def embed_shard(build: Build, chunks: Iterable[Chunk]) -> ShardContent:
    """Returns the rows of some chunks.

    Args:
        build: the build that the shard belongs to.
        chunks: the pictures of the shard.

    Raises:
        ValueError: a vector is not finite in float16.
    """
    schema, seen = metadata_schema(build.plan.columns), []

    def noted() -> Iterator[Chunk]:
        for chunk in chunks:
            seen.append((chunk.faults, chunk.without))
            yield chunk

    halves, tables = [np.empty((0, build.embedder.dim), np.float16)], []
    for vectors, entries in embed_ahead(build.embedder, batches(noted(), build.work.batch_size)):
        halves.append(to_half(vectors, [entry["image_id"] for entry in entries]))
        tables.append(pa.RecordBatch.from_pylist(entries, schema))
    faults = [fault for of_chunk, _ in seen for fault in of_chunk]
    table = pa.Table.from_batches(tables, schema)
    return ShardContent(np.concatenate(halves), table, faults, sum(without for _, without in seen))


def write_content(build: Build, start: int, content: ShardContent) -> WrittenShard:
    """Writes the shard that begins at picture ``start``, unless it has no rows.

    Raises:
        OSError: a file cannot be written.
    """
    shard = None
    if len(content.vectors):
        shard = write_shard(build.path, build.plan.shard_name(start), content.vectors, content.table)
    return WrittenShard(shard, content.unreadable, content.without)
