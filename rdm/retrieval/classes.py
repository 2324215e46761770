"""The classes that rows are stored under: their names, their rows, and neighbours within one."""

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
    """Returns the classes of a database, and every part of one written as ``category/subcategory``."""
    names = set(database.column("class_id").unique().to_pylist())
    return sorted(names | {part for name in names for part in name.split("/")} - {""})


def resolve_class(name: str, database: RetrievalDatabase) -> str:
    """Returns the class a user means; a name that differs in a letter or two is taken, and said.

    Raises:
        ValueError: no class is like it.
    """
    known = class_names(database)
    if name in known:
        return name
    guess = nearest(name, known).partition("'")[2].partition("'")[0]
    if not guess:
        raise ValueError(f"no class '{name}' in {database.path}; it has {', '.join(known)}")
    LOG.warning("no class '%s'; taking '%s'", name, guess)
    return guess


def class_rows(database: RetrievalDatabase, name: str) -> np.ndarray:
    """Returns the rows stored under a class, or under one that it is a part of, ``[M] int64``; removed ones too."""
    stored = database.column("class_id")
    meant = [other for other in stored.unique().to_pylist() if name == other or name in other.split("/")]
    return np.flatnonzero(pc.is_in(stored, value_set=pa.array(meant, pa.string())).to_numpy(zero_copy_only=False))


def labelled(retriever: Retriever, classes: Sequence[str], k: int, seeds: Sequence[int]) -> Retrieved:
    """Returns for each class a row of it, drawn uniformly with a seed of its own, and the k - 1 rows of it around that.

    Args:
        retriever: the database; where it is bound to some rows, classes have those alone.
        classes: B names, see :func:`class_names`.
        k: rows for each.
        seeds: B seeds.

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
                f"class '{name}' has {len(chosen[name])} rows to choose from, expected at least k={k}; ask for fewer "
                "neighbours or another class"
            )
    for name, seed in zip(classes, seeds, strict=True):
        drawn = np.random.default_rng(seed).choice(chosen[name], 1)
        parts.append(retriever.index.search(database.embeddings(drawn), k, chosen[name]))
    rows = np.concatenate([part.rows for part in parts])
    scores = np.concatenate([part.scores for part in parts])
    return Retrieved(torch.from_numpy(database.embeddings(rows)), rows, scores)
