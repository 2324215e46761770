"""The retrieval database: memory-mapped embeddings and the metadata of the pictures that they were made from.

The files, none of which uses pickle::

    database.json            the card: format, embedder, dim, dtype, rows, sources with patches, shards with sha256
    embeddings/00000.npy     [n, D] float16, raw
    metadata/00000.parquet   one row per embedding
    removed.npz              rows that are marked as removed and not yet deleted by compact, if any

The folder may also hold ``index/``, ``neighbours/``, ``popularity.npy``, ``duplicates.csv`` and ``unreadable.json``.
Shards that another project wrote stay where they are; the card records their paths
(:mod:`rdm.retrieval.upkeep.imports`). Only a finished database has a card, which :mod:`rdm.retrieval.builder.build`
writes last.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ldm.files import beside, check_hash, located, read_json
from ldm.util import in_one_line
from rdm.retrieval.database.removed import alive_rows, changing, read_removed, stamp, write_removed
from rdm.retrieval.database.shards import (
    CARD,
    KINDS,
    NUMBERS,
    advise,
    check_card,
    open_shard,
    shard_file,
    stored_name,
    to_our_columns,
    unknown,
)
from rdm.retrieval.embedder import Embedder, check_embedder
from rdm.retrieval.patches.policy import complete_policy
from rdm.retrieval.patches.source import Source

FORMAT = 1
_OPEN_TABLES = 8


class RetrievalDatabase:
    """N rows of raw embeddings, which are read only when they are needed.

    Args:
        path: the folder.
        card: the content of its ``database.json``.

    Attributes:
        path: the folder.
        card: the content of ``database.json``.
        dim: width of an embedding, D.
        fingerprint: SHA-256 of the embedder's fingerprint and the shard table; databases of equal content have equal
            ones.
        sources: the data sets that the shards were made from, in the order of the shards: ``source``, ``patches`` and
            the number of ``shards`` of each.
        starts: the first row of each shard, and N, ``[shards + 1] int64``.
    """

    def __init__(self, path: Path, card: Mapping[str, Any]) -> None:
        self.path = path
        self.dim: int = card["dim"]
        self.fingerprint = fingerprint_of(card, len(card["shards"]))
        if "sources" not in card:  # an earlier form of the card
            of_all = {"source": card["source"], "patches": complete_policy(card["patches"])}
            card = {**card, "sources": [{**of_all, "shards": len(card["shards"])}]}
        self.card = dict(card)
        self.sources: list[dict[str, Any]] = card["sources"]
        self.starts = np.cumsum([0, *(shard["rows"] for shard in card["shards"])])
        self._shards: dict[int, np.ndarray] = {}
        self._tables: dict[int, pa.Table] = {}
        self._columns: dict[str, pa.ChunkedArray] = {}
        self._sources: dict[int, Source] = {}
        self._alive = np.empty(0, dtype=bool)
        self._alive_stamp: tuple[int, ...] = ()
        self._removed = 0

    @classmethod
    def open(cls, path: str | Path, embedder: Embedder | None = None) -> RetrievalDatabase:
        """Returns the database in a folder.

        Args:
            path: the folder.
            embedder: the embedder that must have made the database; None skips that check.

        Raises:
            FileNotFoundError: there is no finished database.
            ValueError: the database has another format version or another embedder, or a shard is missing or has
                another shape.
        """
        path = located(path)
        if not (path / CARD).is_file():
            raise FileNotFoundError(
                f"no finished database at {path}; build it with scripts/build_database.py --output {path}"
            )
        remedy = f"delete {path} or name another path, and build again"
        card = beside(read_json(path / CARD, remedy), path)
        if card.get("format") != FORMAT:
            got = card.get("format")
            raise ValueError(f"database {path} has format {got}, this version reads format {FORMAT}; {remedy}")
        try:
            database = cls(path, card)
            check_card(card)
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise ValueError(f"{path / CARD} is not the card of a database ({error!r}); {remedy}") from error
        if embedder is not None:
            check_embedder(card["embedder"], embedder, f"database {path}", remedy)
        if card["rows"] != len(database):
            raise ValueError(
                f"database {path} states {card['rows']} rows, its shards sum to {len(database)}; rebuild it"
            )
        for number in range(len(card["shards"])):
            database.mapped(number)
        return database

    def __len__(self) -> int:
        """Returns the number of rows, N."""
        return int(self.starts[-1])

    def has_grown_from(self, fingerprint: str) -> bool:
        """Returns whether the first shards alone had this fingerprint, so that rows were only added since."""
        return any(fingerprint_of(self.card, count) == fingerprint for count in range(len(self.card["shards"]), 0, -1))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the path and the card only; a worker process opens the files again."""
        return type(self), (self.path, self.card)

    def is_alive(self, rows: Any = slice(None)) -> np.ndarray:
        """Returns which of some rows are not removed, bool, shaped like ``rows``.

        Rows that are removed, even by another process, keep their numbers and can still be read. Search, neighbour
        tables and popularity leave them out.

        Args:
            rows: integer array of any shape, or a slice; all rows if not given.

        Raises:
            ValueError: the file of removed rows is damaged, or the database was rewritten since it was opened.
        """
        now = stamp(self.path)
        if now != self._alive_stamp:
            self._alive, self._removed = alive_rows(self.path, self.card["shards"])
            self._alive_stamp = now
        return self._alive[rows]

    def living_rows(self) -> np.ndarray:
        """Returns the rows that are not removed, in order, ``[M] int64``; raises what :meth:`is_alive` raises."""
        return np.flatnonzero(self.is_alive())

    @property
    def living_count(self) -> int:
        """Number of rows that are not removed, M."""
        return len(self) - self.removed

    @property
    def removed(self) -> int:
        """Number of rows that are marked as removed and not yet deleted by compact, N - M."""
        self.is_alive(slice(0))  # updates the number if rows were removed meanwhile
        return self._removed

    def remove(self, rows: Any) -> int:
        """Marks rows as removed; this takes effect at once in every process that has the database open.

        Args:
            rows: integer array of any shape.

        Returns:
            The number of rows that were not removed before.

        Raises:
            ValueError: a row is outside ``[0, N)``, the file of removed rows is damaged, or the database was rewritten
                since it was opened.
        """
        rows = self.check_rows(rows).ravel()
        with changing(self.path / CARD):
            before, marks = self.removed, read_removed(self.path)
            for number, _, local in self._by_shard(rows):
                name = self.card["shards"][number]["name"]
                marks[name] = np.concatenate([marks.get(name, local[:0]), local])
            write_removed(self.path, marks)
            return self.removed - before

    def embeddings(self, rows: Any) -> np.ndarray:
        """Returns the raw embeddings of some rows, ``[..., D] float32``.

        Args:
            rows: integer array of any shape.

        Raises:
            ValueError: a row is outside ``[0, N)``.
        """
        rows = self.check_rows(rows)
        vectors = np.empty((rows.size, self.dim), dtype=np.float32)
        for number, places, local in self._by_shard(rows.ravel()):
            vectors[places] = self.mapped(number)[local]
        return vectors.reshape(*rows.shape, self.dim)

    def blocks(self, size: int = 65536, rows: range | None = None) -> Iterator[np.ndarray]:
        """Yields embeddings in order, in blocks ``[<= size, D] float32``; releases the pages of finished shards.

        Args:
            size: rows of a block.
            rows: the part that is read, with a step of 1; None for all rows.
        """
        rows = range(len(self)) if rows is None else rows
        number = 0
        for start in range(rows.start, rows.stop, size):
            stop = min(start + size, rows.stop)
            yield self.embeddings(np.arange(start, stop))
            while number < len(self.starts) - 1 and self.starts[number + 1] <= stop:
                if number in self._shards:
                    advise(self._shards[number], "MADV_DONTNEED")
                number += 1

    def metadata(self, rows: Any) -> list[dict[str, Any]]:
        """Returns the metadata of some rows, in the order of ``rows`` flattened.

        Raises:
            ValueError: a row is outside ``[0, N)``, or a text is damaged.
        """
        flat = self.check_rows(rows).ravel()
        entries: list[dict[str, Any]] = [{} for _ in range(flat.size)]
        for number, places, local in self._by_shard(flat):
            table = self._table(number).take(local)
            lines = self._parquet(lambda _, table=table: table.to_pylist(), number)  # whose texts may be no UTF-8
            for place, entry in zip(places, lines, strict=True):
                entries[place] = entry
        return entries

    def column(self, name: str) -> pa.ChunkedArray:
        """Returns one metadata column of all rows, which then stays in memory.

        Raises:
            ValueError: there is no such column.
        """
        if name not in self._columns:
            numbers = range(len(self.card["shards"]))
            if all(self.stored_as(number, name) is None for number in numbers):
                every = dict.fromkeys(known for number in numbers for known in self._table(number).column_names)
                known = ", ".join(each for each in every if any(self.stored_as(n, each) for n in numbers))
                raise ValueError(
                    f"database {self.path} has no metadata column '{name}', it has {known}; name one of them"
                )
            self._columns[name] = pa.chunked_array([c for number in numbers for c in self.cells(number, name).chunks])
        return self._columns[name]

    def cells(self, number: int, name: str) -> pa.ChunkedArray:
        """Returns one metadata column of one shard from its file, or :func:`unknown` values if the file lacks it."""
        stored, rows = self.stored_as(number, name), self.card["shards"][number]["rows"]
        if stored is None:
            return pa.chunked_array([unknown(name, rows)])
        cells = self._parquet(pq.read_table, number, columns=[stored])[stored]
        return cells if name in NUMBERS else cells.cast(pa.string()).fill_null("")

    def stored_as(self, number: int, name: str) -> str | None:
        """Returns the name of a metadata column in a shard's file; None if the file lacks it or it holds lists."""
        fields = self._parquet(pq.read_schema, number)
        names = [field.name for field in fields if not pa.types.is_nested(field.type)]
        return stored_name(name, names, "files" in self.card["shards"][number])

    def values(self, name: str, rows: Any) -> np.ndarray:
        """Returns one metadata column of some rows as an array shaped like ``rows``; texts are an array of objects.

        Raises:
            ValueError: a row is outside ``[0, N)``, or there is no such column.
        """
        rows = self.check_rows(rows)
        values = self.column(name).take(pa.array(rows.ravel())).to_numpy(zero_copy_only=False)
        return values.reshape(rows.shape)

    def patches(self, rows: Any, source: Any = None) -> list[np.ndarray]:
        """Cuts the patches of some rows out of their source again and returns them, each ``[S, S, 3] uint8``.

        Args:
            rows: integer array of any shape, read flattened.
            source: the data set that the database was built from, if there is only one; None opens the data sets that
                the card describes.

        Raises:
            ValueError: a row is outside ``[0, N)``, or a source holds another picture than the database was built from.
            FileNotFoundError: a source has moved.
        """
        rows = self.check_rows(rows).ravel()
        if source is not None:
            if len(self.sources) != 1:
                raise ValueError(
                    f"got one source, database {self.path} has {len(self.sources)}; leave out source to open them all"
                )
            self._sources[0] = Source(self.sources[0], self.path, source)
        owners = self.sources_of(rows)
        for number in set(owners.tolist()) - self._sources.keys():
            self._sources[number] = Source(self.sources[number], self.path)
        return [
            self._sources[owner].patch(row) for owner, row in zip(owners.tolist(), self.metadata(rows), strict=True)
        ]

    def sources_of(self, rows: Any) -> np.ndarray:
        """Returns the place in :attr:`sources` of each row's source, shaped like ``rows``.

        Raises:
            ValueError: a row is outside ``[0, N)``.
        """
        last_shards = np.cumsum([entry["shards"] for entry in self.sources])
        return np.searchsorted(self.starts[last_shards], self.check_rows(rows), side="right")

    def shard(self, number: int, local: np.ndarray) -> tuple[np.ndarray, pa.Table]:
        """Returns embeddings ``[n, D] float16`` and metadata of some rows, which are numbered within their shard."""
        return self.mapped(number)[local].astype(np.float16, copy=False), self._table(number).take(local)

    def verify(self) -> None:
        """Reads every shard and compares its hash with the card.

        Raises:
            ValueError: a shard is missing or damaged; the message names it.
        """
        for number, shard in enumerate(self.card["shards"]):
            for kind in KINDS:
                check_hash(self.file(kind, number), shard.get(kind, "missing"), "rebuild the database")
            self._table(number)

    def check_rows(self, rows: Any) -> np.ndarray:
        """Returns row numbers of any shape as int64.

        Raises:
            ValueError: the rows are not integers, or one is outside ``[0, N)``.
        """
        rows = np.asarray(rows)
        if not np.issubdtype(rows.dtype, np.integer) and rows.size:
            raise ValueError(f"got rows of type {rows.dtype}, expected integers")
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise ValueError(f"got rows from {rows.min()} to {rows.max()}, expected 0 to {len(self) - 1}")
        return rows.astype(np.int64, copy=False)

    def _by_shard(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yields (shard, places in ``rows``, rows within the shard) for each shard that has some of the ``rows``."""
        owners = np.searchsorted(self.starts, rows, side="right") - 1
        for number in np.unique(owners):
            places = np.flatnonzero(owners == number)
            yield int(number), places, rows[places] - self.starts[number]

    def file(self, kind: str, number: int) -> Path:
        """Returns the file of ``embeddings`` or ``metadata`` of one shard, which is outside the folder if imported."""
        shard = self.card["shards"][number]
        return Path(shard["files"][kind]) if "files" in shard else shard_file(self.path, kind, shard["name"])

    def mapped(self, number: int) -> np.ndarray:
        """Returns the memory-mapped embeddings ``[n, D]`` of one shard in the type that they are stored in."""
        if number not in self._shards:
            shard = self.card["shards"][number]
            dtype = shard.get("dtype", self.card["dtype"])
            self._shards[number] = open_shard(self.file("embeddings", number), shard["rows"], self.dim, dtype)
        return self._shards[number]

    def _table(self, number: int) -> pa.Table:
        """Returns the metadata of one shard; those of the last few shards are kept in memory."""
        table = self._tables.get(number)
        if table is None:
            table = self._parquet(pq.read_table, number)
            expected = self.card["shards"][number]["rows"]
            if len(table) != expected:
                raise ValueError(
                    f"{self.file('metadata', number)} holds {len(table)} rows, expected {expected}; rebuild it"
                )
            if "files" in self.card["shards"][number]:
                try:
                    table = to_our_columns(table)
                except ValueError as error:
                    raise ValueError(f"{self.file('metadata', number)}: {error}") from error
            for other in list(self._tables)[: 1 - _OPEN_TABLES]:  # which another thread may have dropped meanwhile
                self._tables.pop(other, None)
            self._tables[number] = table
        return table

    def _parquet(self, read: Callable[..., Any], number: int, **options: Any) -> Any:
        """Returns what a function of pyarrow reads from the metadata file of one shard."""
        try:
            return read(self.file("metadata", number), **options)
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            reason, file = in_one_line(error), self.file("metadata", number)
            raise ValueError(f"{file} is missing or damaged ({reason}); rebuild the database") from error


def fingerprint_of(card: Mapping[str, Any], count: int) -> str:
    """Returns the fingerprint of the first shards in the card of a database, see :class:`RetrievalDatabase`."""
    contents = {key: card[key] for key in ("format", "dim", "dtype")}
    contents["shards"] = [{key: shard[key] for key in shard if key != "files"} for shard in card["shards"][:count]]
    contents["embedder"] = card["embedder"]["fingerprint"]
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()
