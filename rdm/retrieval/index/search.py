"""Search over the rows of one database: what all kinds of index have in common."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ldm.files import read_json, write_json
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.index.exact import Neighbours, RowReader, best, cosine, search_exactly, unit_vectors

LOG = logging.getLogger(__name__)
CARD = "index.json"
FEW = 20_000  # selections up to this size are searched exactly, row by row
_PER_NEIGHBOUR = 4  # least number of candidates for each neighbour
Choose = Callable[[np.ndarray, Neighbours], Sequence[np.ndarray]]
"""Chooses among neighbours: (numbers of n queries ``[n]``, their nearest rows) -> the places to keep, per query."""


class SearchIndex:
    """Finds the nearest rows by cosine similarity: an index proposes candidates, which are ranked exactly.

    A row that is removed from the database is not found any more from that moment on.

    Args:
        database: the database.
        card: the content of ``index.json``; its ``search`` holds ``candidates`` and the value of :attr:`setting`.
        path: the folder of the index.
        mapped: bytes of the database that may stay mapped into memory between searches; None for no limit.

    Attributes:
        setting: name of the setting that says how widely the index searches (``nprobe``, ``efSearch``); "" if it has
            none.
        exact: whether candidates come with exact scores, so that k candidates suffice for k neighbours.
    """

    setting: str = ""
    exact: bool = False
    needs: ClassVar[tuple[str, ...]] = ()  # keys of its card, beside those of every card

    def __init__(self, database: RetrievalDatabase, card: dict[str, Any], path: Path, mapped: int | None) -> None:
        self.database, self.card, self.path = database, card, path
        self.reader = RowReader(database, mapped)

    @classmethod
    def load(cls, database: RetrievalDatabase, path: str | Path | None = None) -> Any:
        """Returns the saved index of a database.

        Args:
            database: the database that the index must belong to.
            path: its folder; None for ``index`` within the database.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it belongs to another database or is damaged, or its server has lost some of its rows.
            ConnectionError: its server or its cluster does not answer.
        """
        path = Path(path or database.path / "index")
        return cls.saved(database, read_card(database, path, cls.needs), path)

    @classmethod
    def saved(cls, database: RetrievalDatabase, card: dict[str, Any], path: Path) -> Any:
        """Returns the index that a card describes; for arguments see the class, for errors :meth:`load`."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Returns the number of rows, N, including removed ones."""
        return int(self.card["rows"])

    @property
    def widest(self) -> int:
        """The value of the setting at which the index looks at every row."""
        return 1

    @property
    def most(self) -> int:
        """The largest number of candidates that a query can have."""
        return len(self)

    def candidates(
        self, unit: np.ndarray, count: int, breadth: int, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns candidate rows ``[B, count] int64``, best first, and their scores ``[B, count] float32``.

        Where there are fewer candidates, the remaining rows are -1.

        Args:
            unit: queries ``[B, D] float32`` of length one.
            count: candidates per query.
            breadth: value of :attr:`setting`.
            allowed: ``[N] bool``, the rows that may be found; None for all.
        """
        raise NotImplementedError

    def search(self, queries: np.ndarray, k: int, rows: np.ndarray | None = None) -> Neighbours:
        """Returns the k rows most similar to each query with their exact similarity.

        Args:
            queries: ``[B, D] float32``, raw vectors, which are normalised here.
            k: neighbours per query, 1 to the number of rows.
            rows: restricts the search to these rows, given as ``[N] bool`` or as row numbers; a small selection is
                searched exactly.

        Raises:
            ValueError: the shape is wrong, k or a row is out of range, or a query is zero or not finite.
        """
        queries = np.asarray(queries, dtype=np.float32)
        dim = self.card["dim"]
        if queries.ndim != 2 or queries.shape[1] != dim:
            raise ValueError(f"got queries of shape {queries.shape}, expected (B, {dim})")
        if rows is None:
            self._check_k(k, len(self), "rows of the database")
            return self._search(unit_vectors(queries, "query"), k, None, 1.0)
        chosen = self._selection(rows)
        count = len(chosen) if chosen.dtype != bool else int(np.count_nonzero(chosen))
        self._check_k(k, count, "selected rows")
        unit = unit_vectors(queries, "query")
        if chosen.dtype != bool:
            return search_exactly(self.reader, unit, k, chosen)
        return self._search(unit, k, chosen, count / len(self))

    def save(self, path: str | Path | None = None) -> None:
        """Writes the files of the index and, last, its card ``index.json``; those of an earlier index go.

        Args:
            path: folder; None for ``index`` within the database.

        Raises:
            OSError: the index cannot be written, for example on a full disk.
        """
        self.path = Path(path or self.path)
        files = self._write()
        write_json(self.path / CARD, self.card)
        for file in self.path.glob("*.faiss"):
            if file.name not in files:
                file.unlink()
        LOG.info("wrote index %s: %s over %d rows", self.path, self.card["factory"], len(self))

    def _write(self) -> Collection[str]:
        """Writes what the index keeps in its folder, notes it in the card, and returns the names of the files."""
        return ()

    def _check_k(self, k: int, count: int, what: str) -> None:
        if not 1 <= k <= count:
            raise ValueError(f"got k={k}, expected 1 to {count}, the number of {what}; ask for fewer neighbours")

    def _selection(self, rows: np.ndarray) -> np.ndarray:
        """Returns the rows of a selection that are not removed: many as ``[N] bool``, few as ascending row numbers."""
        rows = np.asarray(rows)
        if rows.dtype != bool:
            numbers = self.database.check_rows(rows)
            if numbers.size <= FEW:
                numbers = np.unique(numbers)
                return numbers[self.database.is_alive(numbers)]
            rows = np.zeros(len(self), dtype=bool)
            rows[numbers] = True
        if rows.shape != (len(self),):
            raise ValueError(f"got a row mask of shape {rows.shape}, expected ({len(self)},), one value for every row")
        mask = rows & self.database.is_alive()
        return mask if np.count_nonzero(mask) > FEW else np.flatnonzero(mask)

    def _search(self, unit: np.ndarray, k: int, mask: np.ndarray | None, share: float) -> Neighbours:
        """Returns the k best rows; a query with too few candidates is searched again more widely, finally exactly."""
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
        self._check_k(k, self.database.living_count, "rows that are not removed")
        near = search_exactly(self.reader, unit[waiting], k, None if mask is None else np.flatnonzero(mask))
        best_rows[waiting], best_scores[waiting] = near.rows, near.scores
        return Neighbours(best_rows, best_scores)

    def _rank(self, unit: np.ndarray, rows: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the rows and the exact scores of the k best candidates, each ``[B, k]``."""
        exact = np.where(rows >= 0, scores, -np.inf) if self.exact else cosine(self.reader, unit, rows)
        near = best(rows, exact.astype(np.float32, copy=False), k)
        return near.rows, near.scores


def search_chosen(
    index: SearchIndex,
    queries: np.ndarray,
    k: int,
    choose: Choose,
    short: Callable[[int, int], str],
    rows: np.ndarray | None = None,
    among: int = 1,
) -> Neighbours:
    """Returns the k nearest rows of each query that are chosen; searches more widely where they are too few.

    Args:
        index: the index.
        queries: ``[B, D] float32``, raw vectors.
        k: neighbours per query.
        choose: returns the places of the rows to keep, in their order; those behind the k-th may be missing.
        short: (number of a query, how many of all rows are chosen) -> the message of the error.
        rows: numbers of the rows that the search is restricted to; None for all rows.
        among: how many rows ``choose`` wants to see at least.

    Raises:
        ValueError: fewer than k rows are chosen for a query.
    """
    database = index.database
    total = database.living_count if rows is None else int(database.is_alive(np.unique(rows)).sum())
    found = Neighbours(np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32))
    waiting, width = np.arange(len(queries)), min(max(k, among) + 12, total)
    while True:
        near = index.search(queries[waiting], width, rows)
        chosen = choose(waiting, near)
        counts = np.array([len(places) for places in chosen])
        for line in np.flatnonzero(counts >= k).tolist():
            place, kept = waiting[line], chosen[line][:k]
            found.rows[place], found.scores[place] = near.rows[line][kept], near.scores[line][kept]
        if (counts >= k).all():
            return found
        if width == total:
            fewest = int(np.argmin(counts))
            raise ValueError(short(int(waiting[fewest]), int(counts[fewest])))
        waiting, width = waiting[counts < k], min(width * 8, total)


def new_card(database: RetrievalDatabase, factory: str, ram: int) -> dict[str, Any]:
    """Returns the card of an index that is about to be built.

    Args:
        database: the database.
        factory: description of the index.
        ram: bytes of memory that the search may use.
    """
    card: dict[str, Any] = {"factory": factory, "metric": "cosine", "rows": len(database), "dim": database.dim}
    return {**card, "search": {}, "ram": ram, "database": database.fingerprint}


def is_current(database: RetrievalDatabase, path: Path) -> bool:
    """Returns whether a folder holds an index of the present rows of a database."""
    return (path / CARD).is_file() and read_json(path / CARD, "delete it").get("database") == database.fingerprint


def check_types(card: Mapping[str, Any], path: Path) -> None:
    """Checks the types in the card of an index.

    Raises:
        ValueError: an entry has another type; the message names it.
    """
    types = {"factory": str, "dim": int, "rows": int, "search": dict, "bytes": int, "ram": int, "parts": list}
    types |= {"recall": dict, "ms_per_query": dict}
    if wrong := [name for name, kind in types.items() if type(card.get(name, kind())) is not kind]:
        got, expected = f"{wrong[0]}={str(card[wrong[0]])[:80]}", types[wrong[0]].__name__
        raise ValueError(f"{path / CARD}: got {got}, expected {expected}; delete {path} and build it again")


def read_card(database: RetrievalDatabase, path: Path, keys: tuple[str, ...] = ()) -> dict[str, Any]:
    """Returns the card of a saved index.

    Args:
        database: the database that the index must belong to.
        path: the folder of the index.
        keys: keys that the card must have in addition to those of every card.

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
    check_types(card, path)
    if card["database"] != database.fingerprint:
        raise ValueError(
            f"index {path} belongs to the database with fingerprint {card['database']}, "
            f"got {database.path} with fingerprint {database.fingerprint}; {remedy}"
        )
    return card
