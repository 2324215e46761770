"""The retriever, which finds the neighbours of queries at sampling time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdm.retrieval.database.outlines import Outlines
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.embedder import Embedder, check_embedder
from rdm.retrieval.index.exact import Neighbours
from rdm.retrieval.index.search import SearchIndex, search_chosen


@dataclass(frozen=True)
class Retrieved:
    """The neighbours of some queries, nearest first.

    Attributes:
        embeddings: ``[B, K, D] float32``, the raw vectors, on the device of the queries.
        rows: ``[B, K] int64``, their rows in the database.
        scores: ``[B, K] float32``, their cosine similarity to the query.
    """

    embeddings: Tensor
    rows: np.ndarray
    scores: np.ndarray


class Retriever:
    """Finds the neighbours of queries in a database.

    Args:
        embedder: returns the embedder that made the database and that makes queries from texts and images. It is called
            when the first query is made, because some images need no query.
        database: where neighbours come from.
        index: returns the index of the database. It is called at the first search.
        rows: restricts the search to these rows, ``[M] int64``; None for all rows.
        outlines: those of the database, if neighbours that are copies of a nearer one are left out. None keeps them.
    """

    def __init__(
        self,
        embedder: Callable[[], Embedder],
        database: RetrievalDatabase,
        index: Callable[[], SearchIndex],
        rows: np.ndarray | None = None,
        outlines: Outlines | None = None,
    ) -> None:
        self.database, self.rows, self.outlines = database, rows, outlines
        self._load_embedder, self._open_index = embedder, index

    @functools.cached_property
    def embedder(self) -> Embedder:
        """The embedder, loaded when it is first used.

        Raises:
            ValueError: another embedder made the database.
        """
        embedder, remedy = self._load_embedder(), "use the embedder that made it"
        check_embedder(self.database.card["embedder"], embedder, f"database {self.database.path}", remedy)
        return embedder

    @functools.cached_property
    def index(self) -> SearchIndex:
        """The index, opened when it is first used.

        Raises:
            ValueError: the index belongs to another database.
        """
        index, expected = self._open_index(), self.database.fingerprint
        if index.card["database"] != expected:
            raise ValueError(
                f"the index belongs to database {index.card['database']}, got database {expected}; rebuild the index"
            )
        return index

    def __call__(
        self,
        queries: Tensor,
        k: int,
        *,
        pool: int | None = None,
        generator: np.random.Generator | None = None,
    ) -> Retrieved:
        """Returns k neighbours of each query.

        With a pool and outlines that agree, the first neighbour is drawn and the others are chosen for it.

        Args:
            queries: ``[B, D] float32``, raw vectors.
            k: neighbours per query.
            pool: draw the k neighbours of each query at random from this many nearest rows; None takes the k nearest.
            generator: source of the randomness; required with ``pool``.

        Raises:
            ValueError: k or pool is out of range, or a pool is given without a generator; or copies are left out and
                there are too few different pictures.
        """
        if pool is not None and (pool < k or generator is None):
            raise ValueError(
                f"got pool={pool}, k={k}, generator={generator}; expected a pool of at least k and a generator"
            )
        vectors = queries.detach().cpu().numpy()
        if pool is None or generator is None:
            nearest = self.search(vectors, k, self.rows)
            rows, scores = nearest.rows, nearest.scores
        else:
            nearest = self._search(vectors, pool, self.rows, None if self.outlines is None else self.outlines.different)
            order = generator.permuted(np.tile(np.arange(pool), (len(nearest.rows), 1)), axis=1)
            drawn = order[:, :k]
            if self.outlines is not None:
                lines = zip(nearest.rows, order, strict=True)
                drawn = np.array([places[self.outlines.chosen(line[places], k)] for line, places in lines])
            drawn = np.sort(drawn, axis=1)
            rows, scores = (np.take_along_axis(each, drawn, 1) for each in (nearest.rows, nearest.scores))
        return Retrieved(torch.from_numpy(self.database.embeddings(rows)).to(queries.device), rows, scores)

    def search(self, queries: np.ndarray, k: int, rows: np.ndarray | None) -> Neighbours:
        """Returns k neighbours of each query: the nearest rows, or with :attr:`outlines` those that they choose.

        Args:
            queries: ``[B, D] float32``, raw vectors.
            k: rows per query.
            rows: restricts the search to these rows, ``[M] int64``; None for all rows.

        Raises:
            ValueError: k is out of range, or there are fewer than k different pictures.
        """
        return self._search(queries, k, rows, None if self.outlines is None else self.outlines.chosen)

    def _search(
        self,
        queries: np.ndarray,
        k: int,
        rows: np.ndarray | None,
        places: Callable[[Sequence[int], int], list[int]] | None,
    ) -> Neighbours:
        """Returns k rows for each query, the nearest ones unless ``places`` chooses among them."""
        outlines = self.outlines
        if outlines is None or places is None:
            return self.index.search(queries, k, rows)

        def choose(_: np.ndarray, near: Neighbours) -> list[np.ndarray]:
            return [np.array(places(line, k), dtype=np.int64) for line in near.rows]

        def short(_: int, count: int) -> str:
            return (
                f"got k={k}, expected at most {count}, the number of different pictures among the rows of "
                f"{self.database.path}; ask for fewer neighbours or raise same_outline={outlines.least}"
            )

        return search_chosen(self.index, queries, k, choose, short, rows, outlines.agree)

    @property
    def about(self) -> dict[str, Any]:
        """How neighbours are chosen, as stored in records: ``same_outline`` if copies are left out, and ``agree``."""
        if self.outlines is None:
            return {}
        agree = {} if self.outlines.agree == 1 else {"agree": self.outlines.agree}
        return {"same_outline": self.outlines.least, **agree}


class NoRetriever(Retriever):
    """Takes the place of the retriever of a model without a database. Any use of it is an error.

    Args:
        path: the checkpoint of the model, for the error message.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __getattr__(self, name: str) -> Any:
        raise ValueError(
            f"{self.path} is a plain latent diffusion model, which has no database and no embedder; leave out what "
            f"needs them (here: {name}), or give a retrieval-augmented model with --ckpt"
        )
