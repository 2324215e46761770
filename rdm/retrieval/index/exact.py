"""Exact cosine similarity, computed in float32 from the memory-mapped rows of a database.

It re-ranks the candidates of an approximate index, searches small selections of rows, and is the reference that recall
is measured against. Rows are read in ascending order, so that the pages of a file are read one after the other.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.database.shards import advise

_STATM = Path("/proc/self/statm")
_AT_ONCE = 32768  # rows held in memory as float32 at once


@dataclass(frozen=True)
class Neighbours:
    """The rows nearest to some queries, nearest first.

    Attributes:
        rows: ``[B, K] int64``, each within ``[0, N)``.
        scores: ``[B, K] float32``, cosine similarity.
    """

    rows: np.ndarray
    scores: np.ndarray


def unit_vectors(vectors: np.ndarray, what: str, first: int = 0) -> np.ndarray:
    """Returns vectors ``[B, D] float32`` scaled to length one.

    Args:
        vectors: ``[B, D] float32``.
        what: names a vector in messages, such as ``row``.
        first: number of the first vector, for messages.

    Raises:
        ValueError: a vector is zero or not finite.
    """
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    good = np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)
    if not good.all():
        place = int(np.argmin(good))
        length = norms[place, 0]
        raise ValueError(
            f"{what} {first + place} has length {length}, expected a finite length above zero; check the embedder, or "
            "verify the database"
        )
    return np.ascontiguousarray(vectors / norms, dtype=np.float32)


class RowReader:
    """Reads scattered rows of a database with a limit on the memory that stays mapped.

    Every page that is read through a memory map counts as memory of the process (RSS), although the system may reclaim
    it at any time. Above the limit, maps are released in turn; their content stays in the system's page cache.

    Args:
        database: the database.
        mapped: bytes that may stay mapped; None for no limit.
    """

    def __init__(self, database: RetrievalDatabase, mapped: int | None = None) -> None:
        self.database = database
        self.mapped = mapped
        self._maps: dict[int, tuple[np.memmap, np.ndarray]] = {}
        self._before = mapped_bytes()
        self._next = 0

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Returns the raw vectors ``[n, D]``, in the type of the shards, of ascending rows ``[n]``."""
        cuts = np.searchsorted(rows, self.database.starts)
        parts = [
            self._shard(number)[rows[cuts[number] : cuts[number + 1]] - self.database.starts[number]]
            for number in np.flatnonzero(np.diff(cuts)).tolist()
        ]
        self._release()
        if not parts:
            return np.empty((0, self.database.dim), np.float16)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _shard(self, number: int) -> np.ndarray:
        """Returns a shard through a map for random access; the maps of the database itself are for reading in order."""
        if number not in self._maps:
            shard: Any = self.database.mapped(number)
            mapped = np.memmap(shard.filename, shard.dtype, "r", shard.offset, shard.shape)
            advise(mapped, "MADV_RANDOM")
            self._maps[number] = mapped, mapped.view(np.ndarray)
        return self._maps[number][1]

    def _release(self) -> None:
        if self.mapped is None or mapped_bytes() - self._before <= self.mapped:
            return
        shards = [mapped for mapped, _ in self._maps.values()]
        for _ in shards:
            self._next = (self._next + 1) % len(shards)
            advise(shards[self._next], "MADV_DONTNEED")
            if mapped_bytes() - self._before <= self.mapped // 2:
                break


def mapped_bytes() -> int:
    """Returns how many bytes of files are mapped into this process's memory; 0 if the system does not tell."""
    try:
        return int(_STATM.read_bytes().split()[2]) * mmap.PAGESIZE
    except OSError:
        return 0


@torch.inference_mode()
def cosine(reader: RowReader, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns the similarity of each query to its candidate rows, ``[B, C] float32``.

    Args:
        reader: reads the rows of the database.
        queries: ``[B, D] float32``, of length one.
        rows: ``[B, C] int64``, the candidates of each query; the similarity to row -1 is minus infinity.
    """
    scores = np.empty(rows.shape, np.float32)
    step = max(1, _AT_ONCE // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        flat = np.maximum(part, 0).ravel()
        order = np.argsort(flat, kind="stable")
        read = reader(flat[order])
        vectors = np.empty_like(read)
        vectors[order] = read
        candidates = torch.from_numpy(vectors).float().view(*part.shape, -1)
        products = torch.bmm(candidates, torch.from_numpy(queries[start : start + step])[:, :, None])[:, :, 0]
        scores[start : start + step] = (products / torch.linalg.vector_norm(candidates, dim=-1)).numpy()
    scores[rows < 0] = -np.inf
    return scores


def best(rows: np.ndarray, scores: np.ndarray, k: int) -> Neighbours:
    """Returns the k rows ``[B, k]`` with the highest scores; rows of equal score are ordered by their number.

    Args:
        rows: ``[B, C] int64``, C at least k.
        scores: ``[B, C] float32``.
        k: number of rows to return.
    """
    order = np.lexsort((rows, -scores), axis=-1)[:, :k]
    return Neighbours(np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1))


@torch.inference_mode()
def search_exactly(reader: RowReader, queries: np.ndarray, k: int, rows: np.ndarray | None = None) -> Neighbours:
    """Returns the k rows nearest to each query; fewer columns if there are fewer rows.

    Args:
        reader: reads the rows of the database.
        queries: ``[B, D] float32``, of length one.
        k: neighbours per query.
        rows: the rows to search, ``[n] int64``, ascending; None for all rows that are not removed.
    """
    unit_queries = torch.from_numpy(queries)
    nearest = Neighbours(np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32))
    for numbers, vectors in _blocks(reader, rows):
        unit = torch.nn.functional.normalize(torch.from_numpy(vectors).float(), dim=1, eps=1e-30)
        scores, places = (unit_queries @ unit.T).topk(min(k, len(numbers)), dim=1)
        both = np.concatenate([nearest.rows, numbers[places.numpy()]], axis=1)
        nearest = best(both, np.concatenate([nearest.scores, scores.numpy()], axis=1), k)
    return nearest


def _blocks(reader: RowReader, rows: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields row numbers ``[n]`` and their raw vectors ``[n, D]``, block by block."""
    if rows is not None:
        for start in range(0, len(rows), _AT_ONCE):
            yield (part := rows[start : start + _AT_ONCE]), reader(part)
        return
    start = 0
    for block in reader.database.blocks(_AT_ONCE):
        numbers = np.arange(start, start + len(block))
        start += len(block)
        alive = reader.database.is_alive(numbers)
        if alive.all():
            yield numbers, block
        elif alive.any():
            yield numbers[alive], block[alive]
