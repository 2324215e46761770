"""Finds rows of a database by their metadata."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rdm.retrieval.database.rows import RetrievalDatabase


def find_rows(
    database: RetrievalDatabase,
    *,
    ids: Sequence[str] = (),
    sources: Sequence[str] = (),
    licences: Sequence[str] = (),
    where: Mapping[str, Sequence[str]] | None = None,
) -> np.ndarray:
    """Returns the rows that match any of the given values, in order, ``[R] int64``, including removed rows.

    Args:
        database: the database.
        ids: image ids.
        sources: beginnings of a row's ``uri``: a folder, a file of the source or a web site.
        licences: licences, which must match exactly.
        where: values of other columns, which must match exactly.

    Raises:
        ValueError: there is no such column.
    """
    rules = [("image_id", list(ids), False), ("licence", list(licences), False), ("uri", list(sources), True)]
    rules += [(column, list(values), False) for column, values in (where or {}).items()]
    parts, start = [], 0
    for column in where or {}:
        if all(database.stored_as(number, column) is None for number in range(len(database.card["shards"]))):
            database.column(column)  # raises the error that lists the columns
    for number, shard in enumerate(database.card["shards"]):
        hit = np.zeros(shard["rows"], dtype=bool)
        for column, values, beginning in rules:
            if values and (beginning or _may_hold(database, number, column, values)):
                hit |= _matches(database.cells(number, column), values, beginning)
        parts.append(start + np.flatnonzero(hit))
        start += shard["rows"]
    return np.concatenate(parts)


def select_rows(database: RetrievalDatabase, rules: Sequence[str]) -> np.ndarray:
    """Returns the rows that match ``COLUMN=VALUE`` rules, in order, ``[R] int64``.

    A row must have one of the values given for each column.

    Raises:
        ValueError: a rule has another form, there is no such column, or no row matches.
    """
    values: dict[str, list[str]] = {}
    for rule in rules:
        column, equals, value = rule.partition("=")
        if not equals:
            raise ValueError(f"got the rule '{rule}', expected COLUMN=VALUE")
        values.setdefault(column, []).append(value)
    by_column = [find_rows(database, where={column: wanted}) for column, wanted in values.items()]
    rows = functools.reduce(np.intersect1d, by_column)
    if not len(rows):
        raise ValueError(f"no row of {database.path} has {' and '.join(rules)}; see its metadata for the values")
    return rows


def _may_hold(database: RetrievalDatabase, number: int, column: str, values: Iterable[str]) -> bool:
    """Returns whether a shard may hold one of some values, judged by the smallest and largest value in its file."""
    stored = database.stored_as(number, column)
    if stored is None or "" in values:  # a cell without a value reads as an empty text
        return "" in values
    metadata = pq.read_metadata(database.file("metadata", number))
    place = [metadata.schema.column(leaf).path for leaf in range(metadata.num_columns)].index(stored)
    for group in range(metadata.num_row_groups):
        stated = metadata.row_group(group).column(place).statistics
        if stated is None or not stated.has_min_max or not isinstance(stated.min, str):
            return True
        if any(stated.min <= value <= stated.max for value in values):
            return True
    return False


def _matches(cells: pa.ChunkedArray, values: Sequence[str], beginning: bool) -> np.ndarray:
    texts = cells.cast(pa.string()).fill_null("")
    if not beginning:
        return pc.is_in(texts, value_set=pa.array(values)).to_numpy()
    return np.logical_or.reduce([pc.starts_with(texts, value).to_numpy() for value in values])
