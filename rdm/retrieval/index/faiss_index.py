"""Nearest-neighbour search by cosine similarity with faiss, and the choice among all kinds of index."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ldm.files import check_hash, read_json
from ldm.locks import building, delete_left_lock
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.index.exact import Neighbours
from rdm.retrieval.index.factory import MIN_MAPPED, budget, choose_factory
from rdm.retrieval.index.faiss_rows import FaissRows
from rdm.retrieval.index.milvus_index import SCHEME, MilvusIndex
from rdm.retrieval.index.ray_index import SCHEME as RAY
from rdm.retrieval.index.ray_index import RayIndex
from rdm.retrieval.index.search import CARD, SearchIndex, is_current, new_card, read_card
from rdm.retrieval.index.tune import tune_and_measure

__all__ = ["NeighbourIndex", "Neighbours"]
FILE = "index.faiss"


class NeighbourIndex(SearchIndex):
    """Searches the rows of one database with faiss.

    Args:
        database: the database.
        rows: the faiss index over all of its rows.
        card: factory string, metric, rows, dim, measurements, and the fingerprint of the database.
        path: the folder of the index.
    """

    needs = ("sha256",)

    def __init__(self, database: RetrievalDatabase, rows: FaissRows, card: dict[str, Any], path: Path) -> None:
        held = card.get("bytes", 0)
        super().__init__(database, card, path, max(budget(card.get("ram")) - held, MIN_MAPPED))
        self._rows, self.setting, self.exact = rows, rows.setting, rows.exact

    @property
    def widest(self) -> int:
        """The value of the setting at which the index looks at every row."""
        return self._rows.widest

    @classmethod
    def build(
        cls,
        database: RetrievalDatabase,
        factory: str | None = None,
        *,
        ram: int | str | None = None,
        texts: Callable[[], np.ndarray] | None = None,
        progress: bool = True,
    ) -> NeighbourIndex:
        """Returns an index over all rows of a database, tuned and measured; :meth:`save` writes it.

        Args:
            database: the database.
            factory: faiss' factory string; ``Flat`` is exact. None chooses by the rows, their width and ``ram``.
            ram: memory that the search may use for the index and for mapped rows of the database, in bytes or as a size
                such as ``2GB``, which is the default.
            texts: returns vectors of real texts ``[M, D] float32`` to tune and measure with, see
                :func:`rdm.retrieval.index.tune.caption_vectors`; None uses shifted rows instead.
            progress: show progress bars.

        Raises:
            ValueError: faiss does not know the factory string or cannot train it on so few rows, a row is zero, or
                the memory does not suffice.
        """
        start, allowed = time.perf_counter(), budget(ram)
        factory = factory or choose_factory(len(database), database.dim, allowed)
        rows = FaissRows.build(database, factory, range(len(database)), progress)
        built = cls(database, rows, new_card(database, factory, allowed), database.path / "index")
        tune_and_measure(built, texts, progress=progress)
        built.card["build_seconds"] = round(time.perf_counter() - start, 1)
        return built

    @classmethod
    def saved(cls, database: RetrievalDatabase, card: dict[str, Any], path: Path) -> NeighbourIndex:
        """Returns the index that a card describes, memory-mapped if faiss can do that."""
        check_hash(path / FILE, card["sha256"], f"delete {path} and build it again")
        return cls(database, FaissRows.read(path / FILE, card["factory"]), card, path)

    @classmethod
    def open(
        cls,
        database: RetrievalDatabase,
        factory: str | None = None,
        *,
        ram: int | str | None = None,
        replace: bool = False,
        before_saving: Callable[[SearchIndex], None] | None = None,
        **options: Any,
    ) -> SearchIndex:
        """Returns the index in the folder of a database; builds and saves it first if there is none.

        An index with another factory or memory budget than the given one is built again. Of several processes, one
        builds and the others wait for it.

        Args:
            database: the database.
            factory: see :meth:`build`; ``milvus:`` followed by the URI of a cluster or the name of a file uses Milvus.
            ram: see :meth:`build`.
            replace: whether an index of other rows, as after an append, is built again; otherwise it is an error.
            before_saving: what is done with an index that is built, before it is saved. A process that is killed
                meanwhile leaves no index, so that the next one does it again.
            options: further arguments of :meth:`build`.
        """
        path = database.path / "index"

        def wanted() -> SearchIndex | None:
            if (path / CARD).is_dir():
                raise ValueError(f"{path / CARD} is a folder, expected a file; move it away")
            if not (path / CARD).is_file():
                return None
            card = {} if replace and not is_current(database, path) else read_card(database, path)
            same = factory in (None, card.get("factory")) and (ram is None or budget(ram) == card.get("ram"))
            return index_class(card["factory"]).load(database) if card and same else None

        if (found := wanted()) is not None:
            delete_left_lock(path)
            return found
        with building(path):
            if (found := wanted()) is not None:  # built by another process meanwhile
                return found
            built = index_class(factory).build(database, factory, ram=ram, **options)
            if before_saving is not None:
                before_saving(built)
            built.save()
        return built

    def _write(self) -> tuple[str, ...]:
        self.card |= self._rows.write(self.path / FILE)
        return (FILE,)

    def candidates(
        self, unit: np.ndarray, count: int, breadth: int, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the candidates that faiss finds, see :meth:`SearchIndex.candidates`."""
        return self._rows.candidates(unit, count, breadth, allowed)


def current_index(database: RetrievalDatabase, *, progress: bool = True) -> SearchIndex:
    """Returns the index of a database; one of other rows is built again, of the same kind and for the same memory."""
    file = database.path / "index" / CARD
    card = read_json(file, "delete it") if file.is_file() else {}
    return NeighbourIndex.open(database, card.get("factory"), ram=card.get("ram"), replace=True, progress=progress)


def index_class(factory: str | None) -> Any:
    """Returns the class of the index that a factory string describes."""
    scheme = (factory or "").partition(":")[0] + ":"
    return {SCHEME: MilvusIndex, RAY: RayIndex}.get(scheme, NeighbourIndex)
