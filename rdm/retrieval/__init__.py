"""Where neighbours come from: database, index, neighbour tables, queries.

Names are imported when first used, so a data-loader worker that only reads a neighbour table loads no faiss.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "RetrievalDatabase": "database",
    "build_database": "builder",
    "prepare_database": "builder",
    "NeighbourIndex": "index",
    "Neighbours": "exact",
    "NeighbourTable": "neighbours",
    "build_neighbour_table": "neighbours",
    "prepare_neighbour_table": "neighbours",
    "Retriever": "retriever",
    "Retrieved": "retriever",
    "popular_queries": "queries",
    "text_queries": "queries",
    "class_queries": "queries",
    "image_queries": "queries",
    "mix": "queries",
    "between": "queries",
    "append_pictures": "living",
    "find_rows": "living",
    "compact": "living",
    "merge_databases": "living",
    "find_duplicates": "duplicates",
    "import_database": "imports",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
