"""The index of a database in Milvus: a cluster, or a local file of Milvus Lite. Only this file uses pymilvus.

Milvus stores a copy of the vectors in a collection and returns row numbers, so the database itself is needed, too.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ldm.util import to_install
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.index.exact import unit_vectors
from rdm.retrieval.index.factory import budget
from rdm.retrieval.index.search import SearchIndex, new_card
from rdm.retrieval.index.tune import tune_and_measure

SCHEME = "milvus:"
_MOST = 16384  # Milvus' limit of candidates
_AT_ONCE = 2048  # rows sent at a time; a message may have 64 MB


class MilvusIndex(SearchIndex):
    """Searches the rows of one database with Milvus.

    The environment variable ``MILVUS_TOKEN`` is the cluster's token. A local file serves one process at a time.

    Args:
        database: the database.
        card: its factory is ``milvus:`` followed by the URI of a cluster or the name of a file in the database's
            folder ``index``.
        path: the folder of the card.
    """

    setting, exact = "nprobe", True

    def __init__(self, database: RetrievalDatabase, card: dict[str, Any], path: Path) -> None:
        super().__init__(database, card, path, budget(card.get("ram")))
        self.client = _connect(database, card["factory"])
        self.collection = f"rdm_{database.fingerprint[:32]}"

    @property
    def widest(self) -> int:
        """The value of the setting at which the index looks at every row."""
        return min(65536, max(1, round(4 * math.sqrt(len(self)))))

    @property
    def most(self) -> int:
        """The largest number of candidates that a query can have."""
        return min(_MOST, len(self))

    @classmethod
    def build(
        cls,
        database: RetrievalDatabase,
        factory: str,
        *,
        ram: int | str | None = None,
        texts: Callable[[], np.ndarray] | None = None,
        progress: bool = True,
    ) -> MilvusIndex:
        """Sends all rows to Milvus and returns the index; a collection of the same rows is replaced.

        Args:
            database: the database.
            factory: see :class:`MilvusIndex`.
            ram: memory that mapped rows of the database may use.
            texts: see :meth:`rdm.retrieval.index.faiss_index.NeighbourIndex.build`.
            progress: show progress bars.

        Raises:
            ValueError: pymilvus is not installed, or a row is zero.
            ConnectionError: Milvus does not answer.
        """
        start = time.perf_counter()
        built = cls(database, new_card(database, factory, budget(ram)), database.path / "index")
        with _explained(factory):
            built._fill(progress)
        tune_and_measure(built, texts, progress=progress)
        built.card["build_seconds"] = round(time.perf_counter() - start, 1)
        return built

    @classmethod
    def saved(cls, database: RetrievalDatabase, card: dict[str, Any], path: Path) -> MilvusIndex:
        """Returns the index that a card describes, if Milvus still has all of its rows."""
        index = cls(database, card, path)
        with _explained(index.card["factory"]):
            has = index.client.has_collection(index.collection)
            rows = index.client.get_collection_stats(index.collection)["row_count"] if has else 0
            if rows == len(database):
                index.client.load_collection(index.collection)
                return index
        remedy = f"delete {path} and build it again"
        raise ValueError(f"{index.card['factory']} holds {rows} rows, the database {len(database)}; {remedy}")

    def _fill(self, progress: bool) -> None:
        from pymilvus import DataType, MilvusClient

        if self.client.has_collection(self.collection):
            self.client.drop_collection(self.collection)
        schema = MilvusClient.create_schema(auto_id=False)
        schema.add_field("row", DataType.INT64, is_primary=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=self.database.dim)
        kind = MilvusClient.prepare_index_params()
        kind.add_index("vector", index_type="IVF_FLAT", metric_type="COSINE", params={"nlist": self.widest})
        options = {"schema": schema, "index_params": kind, "consistency_level": "Strong"}
        self.client.create_collection(self.collection, **options)
        row, shown = 0, {"unit": "row", "unit_scale": True, "desc": self.card["factory"], "disable": not progress}
        with tqdm(total=len(self), **shown) as bar:
            for block in self.database.blocks(_AT_ONCE):
                unit = unit_vectors(block, "row", row)
                self.client.insert(self.collection, [{"row": row + i, "vector": x} for i, x in enumerate(unit)])
                row += len(unit)
                bar.update(len(unit))
        self.client.flush(self.collection)

    def candidates(
        self, unit: np.ndarray, count: int, breadth: int, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the candidates that Milvus finds, see :meth:`SearchIndex.candidates`.

        A selection of rows is not sent as a filter expression, which could name millions of rows. Instead, more
        candidates are fetched and those outside the selection are dropped.
        """
        fetched = count if allowed is None else min(self.most, math.ceil(count / max(allowed.mean(), 1e-9)))
        options: dict[str, Any] = {"limit": fetched, "output_fields": ["row"]}
        options["search_params"] = {"metric_type": "COSINE", "params": {self.setting: breadth}}
        with _explained(self.card["factory"]):
            answers = self.client.search(self.collection, data=list(unit), **options)
        rows = np.full((len(unit), count), -1, np.int64)
        scores = np.full((len(unit), count), -np.inf, np.float32)
        for query, hits in enumerate(answers):
            numbers, near = np.array(hits.ids, np.int64), np.array(hits.distances, np.float32)
            if allowed is not None:
                numbers, near = numbers[allowed[numbers]], near[allowed[numbers]]
            rows[query, : len(numbers)], scores[query, : len(numbers)] = numbers[:count], near[:count]
        return rows, scores


def _connect(database: RetrievalDatabase, factory: str) -> Any:
    """Returns a client of the Milvus that a factory string names."""
    uri = factory.removeprefix(SCHEME)
    try:
        from pymilvus import MilvusClient

        if "://" not in uri:
            importlib.import_module("milvus_lite")
            (database.path / "index").mkdir(exist_ok=True)
            uri = str(database.path / "index" / uri)
    except ModuleNotFoundError as error:
        raise ValueError(f"index '{factory}' needs {error.name}: {to_install('milvus')}") from error
    with _explained(factory):
        return MilvusClient(uri, token=os.environ.get("MILVUS_TOKEN", ""))


@contextlib.contextmanager
def _explained(factory: str) -> Iterator[None]:
    """Turns an error of Milvus into one of a single line."""
    from pymilvus import MilvusException

    try:
        yield
    except MilvusException as error:
        raise ConnectionError(
            f"Milvus at '{factory}' reports an error: {error.message}; check that it runs and is reachable"
        ) from error
