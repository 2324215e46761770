"""The classes of database rows: their names, their rows, and neighbours within one class."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from ldm.util import nearest
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.retriever import Retrieved, Retriever

LOG = logging.getLogger(__name__)


def class_names(database: RetrievalDatabase) -> list[str]:
    """Returns the sorted names of the classes of a database; ``a/b`` also gives its parts ``a`` and ``b``."""
    names = set(database.column("class_id").unique().to_pylist())
    return sorted(names | {part for name in names for part in name.split("/")} - {""})


def resolve_class(name: str, database: RetrievalDatabase) -> str:
    """Returns the class with a name. If there is none, returns the one with the most similar name, with a warning.

    Raises:
        ValueError: no class has a similar name.
    """
    known = class_names(database)
    if name in known:
        return name
    guess = nearest(name, known).partition("'")[2].partition("'")[0]
    if not guess:
        raise ValueError(f"database {database.path} has no class '{name}', expected one of {', '.join(known)}")
    LOG.warning("there is no class '%s'; using '%s'", name, guess)
    return guess


def class_rows(database: RetrievalDatabase, name: str) -> np.ndarray:
    """Returns the rows of a class, ``[M] int64``.

    They include removed rows, and the rows of classes ``a/b`` that have the name as a part.
    """
    stored = database.column("class_id")
    meant = [other for other in stored.unique().to_pylist() if name == other or name in other.split("/")]
    return np.flatnonzero(pc.is_in(stored, value_set=pa.array(meant, pa.string())).to_numpy(zero_copy_only=False))


def labelled(retriever: Retriever, classes: Sequence[str], k: int, seeds: Sequence[int]) -> Retrieved:
    """Draws one row of each class uniformly and returns it with the k - 1 rows of that class nearest to it.

    Args:
        retriever: searches the database. If it is restricted to some rows, only those count as rows of a class.
        classes: B names, see :func:`class_names`.
        k: rows returned for each class.
        seeds: B seeds, one for each draw.

    Raises:
        ValueError: a class has fewer than k rows.
    """
    database, chosen, parts = retriever.database, {}, []
    for name in set(classes):
        rows = class_rows(database, name)
        rows = rows if retriever.rows is None else np.intersect1d(rows, retriever.rows)
        chosen[name] = rows[database.is_alive(rows)]
        if len(chosen[name]) < k:
            raise ValueError(
                f"class '{name}' has {len(chosen[name])} rows, expected at least k={k}; ask for fewer neighbours "
                "or for another class"
            )
    for name, seed in zip(classes, seeds, strict=True):
        drawn = np.random.default_rng(seed).choice(chosen[name], 1)
        parts.append(retriever.search(database.embeddings(drawn), k, chosen[name]))
    rows = np.concatenate([part.rows for part in parts])
    scores = np.concatenate([part.scores for part in parts])
    return Retrieved(torch.from_numpy(database.embeddings(rows)), rows, scores)
