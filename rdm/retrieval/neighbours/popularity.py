"""The popularity of database rows: counted from a neighbour table, or imported from another project."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ldm.files import atomic_path, check_hash, file_hash, read_json, write_array, write_json
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.neighbours.table import NeighbourTable

CARD, COUNTS = "popularity.json", "popularity.npy"


def popularity(database: RetrievalDatabase, k: int) -> np.ndarray:
    """Returns how many training pictures have each row among their first k neighbours, ``[N] int64``.

    It is counted from the table ``neighbours/train`` in the folder of the database. If there is no such table, imported
    counts are used (:func:`write_popularity`), for which k is fixed. The popularity of removed rows is 0.

    Raises:
        FileNotFoundError: there is neither a table nor imported counts.
        ValueError: they are damaged or belong to another database, or the table has fewer than k neighbours.
    """
    if not (database.path / CARD).is_file() or (database.path / "neighbours" / "train").is_dir():
        return NeighbourTable.open(database.path / "neighbours" / "train", database).popularity(k)
    remedy = "import it again with scripts/build_database.py"
    card = read_json(database.path / CARD, remedy)
    if card.get("database") != database.fingerprint:
        raise ValueError(
            f"{database.path / COUNTS} belongs to the database with fingerprint {card.get('database')}, got "
            f"{database.path} with fingerprint {database.fingerprint}; {remedy}"
        )
    check_hash(database.path / COUNTS, card["sha256"], remedy)
    counts = np.load(database.path / COUNTS, allow_pickle=False)
    return np.where(database.is_alive(), counts, 0)


def write_popularity(database: RetrievalDatabase, rows: np.ndarray, counts: np.ndarray, origin: str | Path) -> None:
    """Writes imported popularity into the folder of a database.

    Args:
        database: the database.
        rows: row numbers, ``[M] int64``.
        counts: how many pictures have each of these rows as a neighbour, ``[M] int64``; all other rows get 0.
        origin: where the counts come from; recorded in the card.

    Raises:
        ValueError: the database has no such row, or a count is negative.
    """
    if rows.size and not 0 <= rows.min() <= rows.max() < len(database):
        raise ValueError(
            f"{origin} names rows {rows.min()} to {rows.max()}, {database.path} has {len(database)}; import the "
            "database that it belongs to"
        )
    if counts.size and counts.min() < 0:
        raise ValueError(f"{origin} holds the count {counts.min()}, expected counts of at least 0")
    every = np.zeros(len(database), dtype=np.int64)
    every[rows] = counts
    with atomic_path(database.path / COUNTS) as temporary:
        write_array(temporary, every)
        about = {"database": database.fingerprint, "origin": str(origin), "sha256": file_hash(temporary)}
        write_json(database.path / CARD, about)
