"""Nearest neighbours by cosine similarity: the only file that imports faiss."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch  # faiss comes after torch: both bring an OpenMP runtime, and the first one loaded is used

import faiss  # isort: skip

from ldm.files import check_hash, file_hash, read_json, write_json
from ldm.util import atomic_path
from rdm.retrieval.database import RetrievalDatabase

LOG = logging.getLogger(__name__)
_GPU_MAX_K = 2048  # faiss' limit


@dataclass(frozen=True)
class Neighbours:
    """The nearest rows of some queries, best first.

    Attributes:
        rows: ``[B, K] int64``, each within ``[0, N)``.
        scores: ``[B, K] float32``, cosine similarity.
    """

    rows: np.ndarray
    scores: np.ndarray


class NeighbourIndex:
    """Search over the rows of one database.

    Args:
        index: a faiss index over unit vectors with the inner product as metric.
        card: factory string, metric, rows, dim, measured recall and the fingerprint of the database.
        path: the folder it is saved in.
    """

    def __init__(self, index: Any, card: dict[str, Any], path: Path) -> None:
        self.card = card
        self.path = path
        self._cpu = index
        on_gpu = getattr(faiss, "get_num_gpus", int)() > 0 and hasattr(faiss, "index_cpu_to_all_gpus")
        self._fast = faiss.index_cpu_to_all_gpus(index) if on_gpu else index

    def __len__(self) -> int:
        """Returns the number of rows, N."""
        return self._cpu.ntotal

    @classmethod
    def build(cls, database: RetrievalDatabase, factory: str = "Flat") -> NeighbourIndex:
        """Returns an index over all rows of a database, with its recall measured; :meth:`save` writes it.

        Args:
            database: its rows.
            factory: faiss' description of an index that needs no training; ``Flat`` is exact.

        Raises:
            ValueError: faiss does not know the factory string, the index needs training, or a row is zero.
        """
        try:
            index = faiss.index_factory(database.dim, factory, faiss.METRIC_INNER_PRODUCT)
        except RuntimeError as error:
            raise ValueError(f"faiss knows no index '{factory}'; use 'Flat' ({error})") from error
        if not index.is_trained:
            raise ValueError(f"an index '{factory}' needs training, expected one without, such as 'Flat' or 'HNSW32'")
        for block in database.blocks():
            index.add(unit_vectors(block, "row"))
        card = {
            "factory": factory,
            "metric": "cosine",
            "rows": len(database),
            "dim": database.dim,
            "search": {},
            "database": database.fingerprint,
        }
        built = cls(index, card, database.path / "index")
        card["recall"] = measure_recall(built, database)
        return built

    @classmethod
    def load(cls, database: RetrievalDatabase, path: str | Path | None = None) -> NeighbourIndex:
        """Returns the saved index of a database.

        Args:
            database: the database it shall belong to.
            path: its folder; None for ``index`` within the database.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it belongs to another database or is damaged.
        """
        path = Path(path or database.path / "index")
        if not (path / "index.json").is_file():
            raise FileNotFoundError(
                f"no index at {path}; build it with scripts/build_database.py --output {database.path}"
            )
        remedy = f"delete {path} and build it again"
        card = read_json(path / "index.json", remedy)
        missing = {"factory", "dim", "rows", "database", "sha256"} - set(card)
        if missing:
            raise ValueError(f"{path / 'index.json'} lacks {', '.join(sorted(missing))}; {remedy}")
        if card["database"] != database.fingerprint:
            raise ValueError(
                f"index {path} is of the database with fingerprint {card['database']}, "
                f"got {database.path} with fingerprint {database.fingerprint}; {remedy}"
            )
        check_hash(path / "index.faiss", card["sha256"], remedy)
        return cls(faiss.read_index(str(path / "index.faiss")), card, path)

    @classmethod
    def open(cls, database: RetrievalDatabase) -> NeighbourIndex:
        """Returns the index in the folder of a database, building and saving it first where there is none."""
        if (database.path / "index" / "index.json").is_file():
            return cls.load(database)
        built = cls.build(database)
        built.save()
        return built

    def save(self, path: str | Path | None = None) -> None:
        """Writes ``index.faiss`` and, last, its card ``index.json``.

        Args:
            path: folder; None for ``index`` within the database.
        """
        self.path = Path(path or self.path)
        with atomic_path(self.path / "index.faiss") as temporary:
            faiss.write_index(self._cpu, str(temporary))
        self.card["sha256"] = file_hash(self.path / "index.faiss")
        write_json(self.path / "index.json", self.card)
        LOG.info("wrote index %s: %s over %d rows", self.path, self.card["factory"], len(self))

    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        """Returns the k rows most similar to each query.

        Args:
            queries: ``[B, D] float32``, raw; they are normalised here.
            k: neighbours per query, 1 to N.

        Raises:
            ValueError: wrong shape, k out of range, or a query that is zero or not finite.
        """
        queries = np.asarray(queries, dtype=np.float32)
        dim = self.card["dim"]
        if queries.ndim != 2 or queries.shape[1] != dim:
            raise ValueError(f"got queries of shape {queries.shape}, expected (B, {dim})")
        if not 1 <= k <= len(self):
            raise ValueError(
                f"got k={k}, expected 1 to {len(self)}, the rows of the database; ask for fewer neighbours"
            )
        if torch.utils.data.get_worker_info() is not None:
            faiss.omp_set_num_threads(1)  # a search with threads can hang in a forked data-loader worker
        index = self._fast if k <= _GPU_MAX_K else self._cpu
        scores, rows = index.search(unit_vectors(queries, "query"), k)
        if rows.size and rows.min() < 0:
            raise ValueError(
                f"index {self.card['factory']} found fewer than k={k} neighbours; ask for fewer or use 'Flat'"
            )
        return Neighbours(rows.astype(np.int64, copy=False), scores)


def unit_vectors(vectors: np.ndarray, what: str) -> np.ndarray:
    """Returns vectors ``[B, D] float32`` scaled to length one.

    Raises:
        ValueError: one of them is zero or not finite; ``what`` names it.
    """
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    good = np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)
    if not good.all():
        place = int(np.argmin(good))
        raise ValueError(f"{what} {place} has length {norms[place, 0]}, expected a finite vector that is not zero")
    return np.ascontiguousarray(vectors / norms, dtype=np.float32)


def measure_recall(index: NeighbourIndex, database: RetrievalDatabase, queries: int = 64) -> dict[str, Any]:
    """Returns recall@k of an index against exact search in float32.

    Rows of the database spread evenly, turned a little, are the queries. A found row counts when its exact
    similarity reaches that of the exact k-th neighbour, so the order of equal rows does not matter.

    Args:
        index: the index to measure.
        database: its rows.
        queries: number of queries.
    """
    picked = np.unique(np.linspace(0, len(database) - 1, min(queries, len(database))).astype(np.int64))
    raw = database.embeddings(picked)
    raw += 0.1 * raw.std() * np.random.default_rng(0).standard_normal(raw.shape, dtype=np.float32)
    asked = unit_vectors(raw, "query")
    ks = [k for k in (4, 20) if k <= len(database)] or [len(database)]
    best = np.full((len(asked), 0), -np.inf, dtype=np.float32)
    for block in database.blocks():
        together = np.concatenate([best, asked @ unit_vectors(block, "row").T], axis=1)
        best = -np.sort(-together, axis=1)[:, : ks[-1]]
    found = index.search(raw, ks[-1]).rows
    exact = np.einsum("qd,qkd->qk", asked, _unit_rows(database, found))
    recall = {f"recall@{k}": float((exact[:, :k] >= best[:, k - 1 : k] - 1e-5).mean()) for k in ks}
    return {**recall, "queries": len(picked)}


def _unit_rows(database: RetrievalDatabase, rows: np.ndarray) -> np.ndarray:
    flat = unit_vectors(database.embeddings(rows.ravel()), "row")
    return flat.reshape(*rows.shape, database.dim)
