"""Search over the rows of one database, whatever proposes the candidates; what is common to all indices."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from ldm.files import read_json, write_json
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.index.exact import Neighbours, RowReader, best, cosine, search_exactly, unit_vectors

LOG = logging.getLogger(__name__)
CARD = "index.json"
FEW = 20_000  # selections up to this size are searched exactly, row by row
_PER_NEIGHBOUR = 4  # candidates for each neighbour asked for, at least


class SearchIndex:
    """Nearest rows by cosine similarity: candidates from an index, ranked exactly by the database's vectors.

    Rows that have been removed from the database are never found, from the moment they are removed.

    Args:
        database: the rows.
        card: what its ``index.json`` holds; ``search`` has ``candidates`` and the index' own setting.
        path: the folder it is saved in.
        mapped: bytes of the database that may stay mapped into memory between searches; None for no bound.

    Attributes:
        setting: the name in the card of how widely the index looks (``nprobe``, ``efSearch``); "" if it has none.
        exact: candidates come with exact scores, so no more of them are needed than neighbours.
    """

    setting: str = ""
    exact: bool = False

    def __init__(self, database: RetrievalDatabase, card: dict[str, Any], path: Path, mapped: int | None) -> None:
        self.database, self.card, self.path = database, card, path
        self.reader = RowReader(database, mapped)

    def __len__(self) -> int:
        """Returns the number of rows, N, removed ones included."""
        return int(self.card["rows"])

    @property
    def widest(self) -> int:
        """The setting at which the index looks at every row."""
        return 1

    @property
    def most(self) -> int:
        """How many candidates a query may have."""
        return len(self)

    def candidates(
        self, unit: np.ndarray, count: int, breadth: int, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns rows ``[B, count] int64``, -1 where there is none, with scores ``[B, count] float32``, best first.

        Args:
            unit: queries ``[B, D] float32`` of length one.
            count: candidates per query.
            breadth: value of the index' setting.
            allowed: ``[N] bool``, rows that may be found; None for all.
        """
        raise NotImplementedError

    def search(self, queries: np.ndarray, k: int, rows: np.ndarray | None = None) -> Neighbours:
        """Returns the k rows most similar to each query, with their exact similarity.

        Args:
            queries: ``[B, D] float32``, raw; they are normalised here.
            k: neighbours per query, 1 to the number of rows.
            rows: search these alone: ``[N] bool``, or row numbers. Few are searched exactly.

        Raises:
            ValueError: wrong shape, k or a row out of range, or a query that is zero or not finite.
        """
        queries = np.asarray(queries, dtype=np.float32)
        dim = self.card["dim"]
        if queries.ndim != 2 or queries.shape[1] != dim:
            raise ValueError(f"got queries of shape {queries.shape}, expected (B, {dim})")
        if rows is None:
            self._check_k(k, len(self), "the rows of the database")
            return self._search(unit_vectors(queries, "query"), k, None, 1.0)
        chosen = self._selection(rows)
        count = len(chosen) if chosen.dtype != bool else int(np.count_nonzero(chosen))
        self._check_k(k, count, "the selected rows")
        unit = unit_vectors(queries, "query")
        if chosen.dtype != bool:
            return search_exactly(self.reader, unit, k, chosen)
        return self._search(unit, k, chosen, count / len(self))

    def save(self, path: str | Path | None = None) -> None:
        """Writes the card ``index.json``, which makes the index complete.

        Args:
            path: folder; None for ``index`` within the database.
        """
        self.path = Path(path or self.path)
        write_json(self.path / CARD, self.card)
        LOG.info("wrote index %s: %s over %d rows", self.path, self.card["factory"], len(self))

    def _check_k(self, k: int, count: int, what: str) -> None:
        if not 1 <= k <= count:
            raise ValueError(f"got k={k}, expected 1 to {count}, {what}; ask for fewer neighbours")

    def _selection(self, rows: np.ndarray) -> np.ndarray:
        """Returns the living rows of a selection: as ``[N] bool`` where they are many, else as ascending numbers."""
        rows = np.asarray(rows)
        if rows.dtype != bool:
            numbers = self.database.check_rows(rows)
            if numbers.size <= FEW:
                numbers = np.unique(numbers)
                return numbers[self.database.is_alive(numbers)]
            rows = np.zeros(len(self), dtype=bool)
            rows[numbers] = True
        if rows.shape != (len(self),):
            raise ValueError(f"got a row mask of shape {rows.shape}, expected ({len(self)},), a value for every row")
        mask = rows & self.database.is_alive()
        return mask if np.count_nonzero(mask) > FEW else np.flatnonzero(mask)

    def _search(self, unit: np.ndarray, k: int, mask: np.ndarray | None, share: float) -> Neighbours:
        """Returns the k best; a query that gets too few candidates is asked again more widely, at last exactly."""
        settings = self.card["search"]
        count = k if self.exact else max(settings.get("candidates", 0), _PER_NEIGHBOUR * k)
        count, breadth = min(count, self.most), min(int(settings.get(self.setting, 1) / share), self.widest)
        need = k if self.exact else max(k, count // 2)
        best_rows, best_scores = np.empty((len(unit), k), np.int64), np.empty((len(unit), k), np.float32)
        waiting = np.arange(len(unit))
        while True:
            rows, scores = self.candidates(unit[waiting], count, breadth, mask)
            rows = np.where((rows >= 0) & self.database.is_alive(rows), rows, -1)
            ready = (rows >= 0).sum(axis=1) >= need
            if ready.any():
                done = waiting[ready]
                best_rows[done], best_scores[done] = self._rank(unit[done], rows[ready], scores[ready], k)
                waiting = waiting[~ready]
            if not len(waiting):
                return Neighbours(best_rows, best_scores)
            if (count, breadth) == (self.most, self.widest):
                break
            count, breadth = min(4 * count, self.most), min(4 * breadth, self.widest)
        self._check_k(k, self.database.living_count, "the rows that have not been removed")
        near = search_exactly(self.reader, unit[waiting], k, None if mask is None else np.flatnonzero(mask))
        best_rows[waiting], best_scores[waiting] = near.rows, near.scores
        return Neighbours(best_rows, best_scores)

    def _rank(self, unit: np.ndarray, rows: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns rows and exact scores ``[B, k]`` of the best candidates."""
        exact = np.where(rows >= 0, scores, -np.inf) if self.exact else cosine(self.reader, unit, rows)
        near = best(rows, exact.astype(np.float32, copy=False), k)
        return near.rows, near.scores


def new_card(database: RetrievalDatabase, factory: str, ram: int) -> dict[str, Any]:
    """Returns the card of an index that is about to be built.

    Args:
        database: its rows.
        factory: what the index is.
        ram: bytes that searching may hold in memory.
    """
    card: dict[str, Any] = {"factory": factory, "metric": "cosine", "rows": len(database), "dim": database.dim}
    return {**card, "search": {}, "ram": ram, "database": database.fingerprint}


def is_current(database: RetrievalDatabase, path: Path) -> bool:
    """Returns whether there is an index in a folder that was built over the rows of a database as they are."""
    return (path / CARD).is_file() and read_json(path / CARD, "delete it").get("database") == database.fingerprint


def read_card(database: RetrievalDatabase, path: Path, keys: tuple[str, ...] = ()) -> dict[str, Any]:
    """Returns the card of a saved index.

    Args:
        database: the database it shall belong to.
        path: its folder.
        keys: what it has to have beside what every card has.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it belongs to another database or is damaged.
    """
    if not (path / CARD).is_file():
        raise FileNotFoundError(f"no index at {path}; build it with scripts/build_database.py --output {database.path}")
    remedy = f"delete {path} and build it again"
    card = read_json(path / CARD, remedy)
    missing = {"factory", "dim", "rows", "database", "search", *keys} - set(card)
    if missing:
        raise ValueError(f"{path / CARD} lacks {', '.join(sorted(missing))}; {remedy}")
    if card["database"] != database.fingerprint:
        raise ValueError(
            f"index {path} is of the database with fingerprint {card['database']}, "
            f"got {database.path} with fingerprint {database.fingerprint}; {remedy}"
        )
    return card
