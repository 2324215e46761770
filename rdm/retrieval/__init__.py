"""Retrieval: the database, its index, neighbour tables and queries.

Names are imported when they are first used, so that a data-loader worker which only reads a neighbour table does not
load faiss.
"""

from ldm.util import names_when_used

_HOME = {
    "RetrievalDatabase": "database.rows",
    "build_database": "builder.build",
    "prepare_database": "builder.build",
    "NeighbourIndex": "index.faiss_index",
    "Neighbours": "index.exact",
    "NeighbourTable": "neighbours.table",
    "build_neighbour_table": "neighbours.build",
    "prepare_neighbour_table": "neighbours.build",
    "Retriever": "retriever",
    "Retrieved": "retriever",
    "popular_queries": "queries",
    "text_queries": "queries",
    "class_queries": "queries",
    "image_queries": "queries",
    "mix": "queries",
    "between": "queries",
    "append_pictures": "upkeep.append",
    "add_pictures": "upkeep.add",
    "NewPicture": "upkeep.add",
    "find_rows": "database.find",
    "compact": "upkeep.compact",
    "merge_databases": "upkeep.merge",
    "find_duplicates": "upkeep.duplicates",
    "import_database": "upkeep.imports",
}
__all__ = sorted(_HOME)
__getattr__ = names_when_used(__name__, _HOME)
