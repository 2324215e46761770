"""Opens what sampling reads of a database: its retriever, its index and its outlines."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ldm.hub import in_cache
from rdm.retrieval.database.find import select_rows
from rdm.retrieval.database.outlines import Outlines
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.embedder import Embedder
from rdm.retrieval.index.search import SearchIndex
from rdm.retrieval.retriever import Retriever

LOG = logging.getLogger(__name__)


def retriever_of(
    database: RetrievalDatabase,
    embedder: Callable[[], Embedder],
    data: Any,
    only: Sequence[str] = (),
    same_outline: float | None = None,
    agree: int | None = None,
) -> Retriever:
    """Returns the retriever of a database; embedder and index are loaded at their first use.

    ``only``, ``same_outline`` and ``agree`` are those of :func:`rdm.loading.load`.

    Raises:
        ValueError: no row fits the rules.
    """
    rows = select_rows(database, only) if only else None
    outlines = outlines_of(database, data, same_outline, agree)
    return Retriever(embedder, database, partial(open_index, database), rows, outlines)


def outlines_of(
    database: RetrievalDatabase, data: Any, same_outline: float | None, agree: int | None
) -> Outlines | None:
    """Returns the outlines of a database for the data module of a model, see :func:`rdm.loading.load`."""
    least = data.same_outline if same_outline is None else same_outline
    usual = 1 if data.agreement is None or least is None or least > 1 else data.agreement.among
    outlines = Outlines.of(database, least, usual if agree is None else agree)
    if same_outline is None and agree is None and outlines is not None and not outlines.has_pictures():
        LOG.warning("database %s has lost its pictures, so copies are not left out of neighbours", database.path)
        return None
    return outlines


def open_index(database: RetrievalDatabase) -> SearchIndex:
    """Returns the index of a database; it is built in memory beside a database in the cache of the hub."""
    from rdm.retrieval.index.faiss_index import NeighbourIndex  # imports faiss only for a search

    if (database.path / "index").is_dir() or not in_cache(database.path):
        return NeighbourIndex.open(database)
    return NeighbourIndex.build(database)  # in memory; the cache of the hub stays as it was downloaded
