"""Neighbour tables, which hold the nearest database rows of each picture of a data set."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ldm.files import check_hash, read_json
from rdm.retrieval.database.rows import RetrievalDatabase

LOG = logging.getLogger(__name__)
FORMAT = 1
CARD, ROWS = "neighbours.json", "neighbours.npy"
AGREEMENT = "agreement.npy"  # of a table that says how much the outlines of neighbours and pictures agree
NEAR_DUPLICATE = 0.999  # cosine similarity of two copies of a picture in another file format or size
PICTURE, CAPTION = "picture", "caption"  # kinds of query: the picture itself or its caption
ASSUMED = {"patches_per_side": 1, "query": PICTURE}  # values of keys that a card lacks
_LINES = 65536


class NeighbourTable:
    """Line ``i`` holds the K nearest database rows of item ``i`` of the data set, nearest first.

    Args:
        path: the folder.
        card: the content of its ``neighbours.json``.
        database: the database; rows that are removed from it are left out from that moment on.

    Attributes:
        rows: ``[images, K]`` integers, memory-mapped, including rows removed since; ``[images, n * n, K]`` for a table
            of n x n patches per picture.
        k: neighbours stored per picture or patch, K.
        agreement: correlation of the outline of each neighbour with that of the picture, of the shape of ``rows``,
            ``float16``, memory-mapped; None of a table without it.
    """

    def __init__(self, path: Path, card: Mapping[str, Any], database: RetrievalDatabase) -> None:
        self.path = path
        self.card = dict(card)
        self.database = database
        self.k: int = card["k"]
        self.rows = np.load(path / ROWS, mmap_mode="r", allow_pickle=False)
        self.agreement: np.ndarray | None = None
        if self.card.get("agreement"):
            self.agreement = np.load(path / AGREEMENT, mmap_mode="r", allow_pickle=False)

    @classmethod
    def open(cls, path: str | Path, database: RetrievalDatabase) -> NeighbourTable:
        """Returns the table in a folder.

        Raises:
            FileNotFoundError: there is no table.
            ValueError: the table is damaged or belongs to another database.
        """
        path = Path(path)
        if not (path / CARD).is_file():
            raise FileNotFoundError(
                f"no neighbour table at {path}; build it with scripts/search_neighbors.py --output {path}"
            )
        remedy = "rerun scripts/search_neighbors.py"
        card = read_json(path / CARD, remedy)
        if card.get("format") != FORMAT or card.get("database") != database.fingerprint:
            raise ValueError(
                f"neighbour table {path} belongs to the database with fingerprint {card.get('database')}, "
                f"got {database.path} with fingerprint {database.fingerprint}; {remedy}"
            )
        check_hash(path / ROWS, card["sha256"], remedy)
        if card.get("agreement"):
            check_hash(path / AGREEMENT, card["agreement"], remedy)
        return cls(path, card, database)

    def __len__(self) -> int:
        """Returns the number of pictures."""
        return len(self.rows)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the path, the card and the database; a worker process opens the file again."""
        return type(self), (self.path, self.card, self.database)

    def nearest(self, numbers: Any, k: int) -> np.ndarray:
        """Returns the k nearest rows of pictures, without removed rows, ``[..., k]`` or ``[..., n * n * k]`` int64.

        Args:
            numbers: numbers of the pictures, of any shape.
            k: neighbours of each picture or patch.

        Raises:
            ValueError: fewer than k of the stored neighbours are not removed.
        """
        numbers = np.asarray(numbers, dtype=np.int64)
        lines = np.asarray(self.rows[numbers], dtype=np.int64).reshape(-1, self.k)
        kept = _first_of_line(self.database.is_alive(lines), k)
        if int(np.count_nonzero(kept)) < k * len(lines):
            raise ValueError(self._short(k))
        return lines[kept].reshape(*numbers.shape, -1)

    def stored(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns all stored neighbours of a picture, nearest first, and the agreement of their outlines with its own.

        Removed rows are left out.

        Args:
            number: of the picture, in a table of whole pictures.

        Returns:
            Rows ``[k] int64`` and agreements ``[k] float32``, with k at most :attr:`k`.

        Raises:
            ValueError: the table holds no agreement of outlines.
        """
        if self.agreement is None:
            raise ValueError(
                f"neighbour table {self.path} does not say how much outlines agree; delete it, and the next training "
                "with data.params.same_outline builds it again"
            )
        rows = np.asarray(self.rows[number], dtype=np.int64)
        kept = self.database.is_alive(rows)
        return rows[kept], self.agreement[number][kept].astype(np.float32)

    def check_k(self, k: int) -> None:
        """Checks that every picture has k stored neighbours that are not removed.

        Raises:
            ValueError: k is below 1, or the table or some picture has fewer neighbours.
        """
        self._check_stored(k)
        if self.left() < k:
            raise ValueError(self._short(k))

    def _check_stored(self, k: int) -> None:
        if not 1 <= k <= self.k:
            raise ValueError(
                f"neighbour table {self.path} holds {self.k} neighbours per image, got k={k}; "
                f"rerun scripts/search_neighbors.py --k {max(k, 1)}"
            )

    def left(self) -> int:
        """Returns the smallest number of stored neighbours of a picture that are not removed."""
        if not self.database.removed:
            return self.k  # which need not read the lines
        return min((int(self.database.is_alive(rows).sum(axis=-1).min()) for rows in self._blocks()), default=self.k)

    def _short(self, k: int) -> str:
        return (
            f"rows were removed from {self.database.path}, so an image of neighbour table {self.path} has "
            f"{self.left()} of {self.k} neighbours, got k={k}; rerun scripts/search_neighbors.py"
        )

    def _blocks(self) -> Iterator[np.ndarray]:
        """Yields the lines in blocks, ``[n, K] int64``."""
        lines = self.rows.reshape(-1, self.k)
        for start in range(0, len(lines), _LINES):
            yield lines[start : start + _LINES].astype(np.int64)

    def popularity(self, k: int) -> np.ndarray:
        """Returns how many pictures have each row among their first k neighbours, ``[N] int64``.

        Divided by its sum this is the proposal distribution p_D (Blattmann et al. 2022, section 3.2). The popularity of
        removed rows is 0; further stored neighbours count in their place. A picture with fewer than k neighbours left
        counts with those, and a warning says how many such pictures there are.

        Raises:
            ValueError: the table holds fewer than k neighbours per picture.
        """
        self._check_stored(k)
        counts, short = np.zeros(self.card["database_rows"], dtype=np.int64), 0
        for rows in self._blocks():
            kept = _first_of_line(self.database.is_alive(rows), k)
            counts += np.bincount(rows[kept], minlength=len(counts))
            short += int(np.count_nonzero(kept.sum(axis=-1) < k))
        if short:
            LOG.warning(
                "removals left %d of %d pictures fewer than %d of the neighbours stored in %s; "
                "rerun scripts/search_neighbors.py to find others",
                *(short, len(self), k, self.path),
            )
        return counts


def _first_of_line(kept: np.ndarray, k: int) -> np.ndarray:
    """Returns which places of ``[n, K] bool`` are the first k of their line that are true, ``[n, K] bool``."""
    return kept & (kept.cumsum(axis=1) <= k)
