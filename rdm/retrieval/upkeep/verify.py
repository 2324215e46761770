"""Verifies the files of a database, of its index and of its neighbour tables."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.index.search import read_card
from rdm.retrieval.neighbours.table import NeighbourTable
from rdm.retrieval.upkeep.compact import unused_files


def verify(database: RetrievalDatabase) -> Iterator[str]:
    """Reads every byte of a database, its index and its neighbour tables; yields a line for each intact part.

    Args:
        database: the database.

    Raises:
        ValueError: a part is damaged or belongs to another database; raised at the end, the message names all faults.
    """
    checks = {
        "shards": _shards,
        **({"index": _index} if (database.path / "index").is_dir() else {}),
        **{f"neighbours/{folder.name}": _table for folder in sorted((database.path / "neighbours").glob("*"))},
    }
    faults = []
    for name, check in checks.items():
        try:
            yield f"{name}: {check(database, name)}"
        except (OSError, ValueError) as error:
            faults.append(str(error))
    if faults:
        raise ValueError("; ".join(faults))


def _shards(database: RetrievalDatabase, name: str) -> str:
    del name
    database.verify()
    unused = len(unused_files(database.path, database.card["shards"]))
    note = f", {unused} files that belong to no shard and that compact deletes" if unused else ""
    return f"{len(database.card['shards'])} with {len(database)} rows, {database.removed} of them removed{note}"


def _index(database: RetrievalDatabase, name: str) -> str:
    from rdm.retrieval.index.faiss_index import index_class  # loads faiss, which a database without index does not need

    path = database.path / name
    index = index_class(read_card(database, path)["factory"]).load(database, path)
    if len(index) != len(database):
        raise ValueError(f"index {index.path} holds {len(index)} rows, {database.path} {len(database)}; build it again")
    return f"{index.card['factory']} over {len(index)} rows"


def _table(database: RetrievalDatabase, name: str) -> str:
    table = NeighbourTable.open(database.path / name, database)
    if table.rows.size and not 0 <= table.rows.min() <= table.rows.max() < len(database):
        raise ValueError(f"{table.path} names rows outside {database.path}; rerun scripts/search_neighbors.py")
    left = float(np.mean(database.is_alive(table.rows)))
    return f"{len(table)} pictures, {table.k} neighbours each, {left:.1%} of them not removed"
