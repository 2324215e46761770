"""A neighbour table: for each picture of a data set, the rows of a database that are nearest to it."""

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
NEAR_DUPLICATE = 0.999  # cosine similarity of two copies of a picture in another file format or size
PICTURE, CAPTION = "picture", "caption"  # what a picture's neighbours are found by
ASSUMED = {"patches_per_side": 1, "query": PICTURE}  # where a card does not say
_LINES = 65536


class NeighbourTable:
    """Line ``i`` holds the K nearest database rows of the picture delivered as item ``i``, best first.

    Args:
        path: the folder.
        card: what its ``neighbours.json`` holds.
        database: where the rows are; those that are removed from it are left out, from the moment they are.

    Attributes:
        rows: ``[images, K]`` integers, memory-mapped, as they were found; ``[images, n * n, K]`` where each picture was
            searched for in n x n patches.
        k: neighbours stored per picture or patch, K.
    """

    def __init__(self, path: Path, card: Mapping[str, Any], database: RetrievalDatabase) -> None:
        self.path = path
        self.card = dict(card)
        self.database = database
        self.k: int = card["k"]
        self.rows = np.load(path / ROWS, mmap_mode="r", allow_pickle=False)

    @classmethod
    def open(cls, path: str | Path, database: RetrievalDatabase) -> NeighbourTable:
        """Returns the table in a folder.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged or belongs to another database.
        """
        path = Path(path)
        if not (path / CARD).is_file():
            raise FileNotFoundError(
                f"no neighbour table at {path}; make it with scripts/search_neighbors.py --output {path}"
            )
        remedy = "rerun scripts/search_neighbors.py"
        card = read_json(path / CARD, remedy)
        if card.get("format") != FORMAT or card.get("database") != database.fingerprint:
            raise ValueError(
                f"neighbour table {path} is of the database with fingerprint {card.get('database')}, "
                f"got {database.path} with fingerprint {database.fingerprint}; {remedy}"
            )
        check_hash(path / ROWS, card["sha256"], remedy)
        return cls(path, card, database)

    def __len__(self) -> int:
        """Returns the number of pictures."""
        return len(self.rows)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels to worker processes as its path and card, and those of the database."""
        return type(self), (self.path, self.card, self.database)

    def nearest(self, numbers: Any, k: int) -> np.ndarray:
        """Returns the k nearest rows of pictures that are not removed, ``[..., k]`` or ``[..., n * n * k]`` int64.

        Args:
            numbers: of the pictures, of any shape.
            k: neighbours of each picture or patch.

        Raises:
            ValueError: fewer than k of those stored are left.
        """
        numbers = np.asarray(numbers, dtype=np.int64)
        lines = np.asarray(self.rows[numbers], dtype=np.int64).reshape(-1, self.k)
        kept = _first_of_line(self.database.is_alive(lines), k)
        if int(np.count_nonzero(kept)) < k * len(lines):
            raise ValueError(self._short(k))
        return lines[kept].reshape(*numbers.shape, -1)

    def check_k(self, k: int) -> None:
        """Checks that k neighbours per picture are stored and not removed.

        Raises:
            ValueError: k is below 1 or more than the table holds, or has left of some picture.
        """
        self._check_stored(k)
        if self.left() < k:
            raise ValueError(self._short(k))

    def _check_stored(self, k: int) -> None:
        if not 1 <= k <= self.k:
            raise ValueError(
                f"neighbour table holds {self.k} neighbours per image, config asks for k={k}; "
                f"rerun scripts/search_neighbors.py --k {max(k, 1)}"
            )

    def left(self) -> int:
        """Returns how many neighbours every picture has that are not removed; K where none is."""
        if not self.database.removed:
            return self.k  # without a look at the lines
        return min((int(self.database.is_alive(rows).sum(axis=-1).min()) for rows in self._blocks()), default=self.k)

    def _short(self, k: int) -> str:
        return (
            f"rows were removed from {self.database.path}, which leaves {self.left()} of {self.k} neighbours to an "
            f"image of table {self.path}, config asks for k={k}; rerun scripts/search_neighbors.py"
        )

    def _blocks(self) -> Iterator[np.ndarray]:
        """Yields the lines in blocks, ``[n, K] int64``."""
        lines = self.rows.reshape(-1, self.k)
        for start in range(0, len(lines), _LINES):
            yield lines[start : start + _LINES].astype(np.int64)

    def popularity(self, k: int) -> np.ndarray:
        """Returns how many pictures have each row among their first k neighbours, ``[N] int64``.

        Divided by its sum this is the proposal distribution p_D (Blattmann et al. 2022, section 3.2). Removed rows have
        none: it is the count over the database without them, as far as the stored neighbours tell. Pictures of which
        fewer than k of these are left count with those, and how many such there are is logged.

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
                "scripts/search_neighbors.py finds others",
                *(short, len(self), k, self.path),
            )
        return counts


def _first_of_line(kept: np.ndarray, k: int) -> np.ndarray:
    """Returns which places of ``[n, K] bool`` are the first k of their line that are true, ``[n, K] bool``."""
    return kept & (kept.cumsum(axis=1) <= k)
