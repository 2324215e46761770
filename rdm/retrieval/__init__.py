"""Where neighbours come from: database, index, neighbour tables, queries.

Names are imported when first used, so a data-loader worker that only reads a neighbour table loads no faiss.
"""

from ldm.util import names_when_used

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
__getattr__ = names_when_used(__name__, _HOME)
