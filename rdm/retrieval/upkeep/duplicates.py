"""Finds duplicates: rows with the same pixels as an earlier row, or with nearly the same embedding."""

from __future__ import annotations

import csv
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from ldm.files import atomic_path
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.index.search import SearchIndex

FILE = "duplicates.csv"
_BATCH = 1024


@dataclass(frozen=True)
class Duplicates:
    """Rows that repeat an earlier row, in ascending order.

    Attributes:
        rows: ``[R] int64``.
        of: ``[R] int64``, the earlier row that each repeats, which is not among ``rows``.
        similarity: ``[R] float32``, cosine similarity to that row; 1 for the same pixels.
        exact: number of rows with the same pixels.
    """

    rows: np.ndarray
    of: np.ndarray
    similarity: np.ndarray
    exact: int


def find_duplicates(
    database: RetrievalDatabase, index: SearchIndex, near: float, *, progress: bool = True
) -> Duplicates:
    """Returns the rows that repeat an earlier row; removed rows are ignored.

    A row is a duplicate if an earlier row that is no duplicate has the same pixels or is similar enough.

    Args:
        database: the database.
        index: its index; an approximate index may miss some near-duplicates.
        near: least cosine similarity of a near-duplicate; above 1 only rows with the same pixels are duplicates.
        progress: show a progress bar.
    """
    of = _same_pixels(database)
    similarity = (of >= 0).astype(np.float32)
    exact = int(np.count_nonzero(of >= 0))
    if near <= 1:
        _find_near(database, index, near, of, similarity, progress)
    rows = np.flatnonzero(of >= 0)
    further = of[of[rows]] >= 0  # the first row with these pixels is itself a near-duplicate of an earlier one
    similarity[rows[further]] = similarity[of[rows[further]]]
    of[rows[further]] = of[of[rows[further]]]
    return Duplicates(rows, of[rows], similarity[rows], exact)


def write_duplicates(database: RetrievalDatabase, duplicates: Duplicates) -> None:
    """Writes ``duplicates.csv`` into the folder of the database, with a line for each duplicate and both image ids."""
    with atomic_path(database.path / FILE) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("row", "image_id", "of", "of_image_id", "similarity"))
        for start in range(0, len(duplicates.rows), _BATCH):
            part = slice(start, start + _BATCH)
            rows, of = duplicates.rows[part], duplicates.of[part]
            ids, theirs = (database.values("image_id", numbers).tolist() for numbers in (rows, of))
            similarity = [f"{value:.4f}" for value in duplicates.similarity[part]]
            writer.writerows(zip(rows.tolist(), ids, of.tolist(), theirs, similarity, strict=True))


def _same_pixels(database: RetrievalDatabase) -> np.ndarray:
    """Returns for each row the first row with the same pixels, ``[N] int64``; -1 for that row itself and if unknown."""
    cells = [database.cells(number, "sha256") for number in range(len(database.card["shards"]))]
    hashes = np.concatenate([cell.cast(pa.string()).fill_null("").to_numpy().astype("S32") for cell in cells])
    rows = np.flatnonzero((hashes != b"") & database.is_alive())
    _, first, group = np.unique(hashes[rows], return_index=True, return_inverse=True)
    of = np.full(len(database), -1, dtype=np.int64)
    of[rows] = np.where(first[group] < np.arange(len(rows)), rows[first[group]], -1)
    return of


def _find_near(
    database: RetrievalDatabase,
    index: SearchIndex,
    near: float,
    of: np.ndarray,
    similarity: np.ndarray,
    progress: bool,
) -> None:
    """Adds the rows that are similar to an earlier row to ``of`` and ``similarity``."""
    total = database.living_count
    rows = np.flatnonzero((of < 0) & database.is_alive())
    for start in tqdm(range(0, len(rows), _BATCH), unit_scale=_BATCH, desc="near-duplicates", disable=not progress):
        waiting, width = rows[start : start + _BATCH], min(8, total)
        hits: dict[int, list[tuple[int, float]]] = {}
        while len(waiting):
            nearest = index.search(database.embeddings(waiting), width)
            full = (nearest.scores[:, -1] >= near) & (width < total)
            for line in np.flatnonzero(~full & (nearest.scores[:, min(1, width - 1)] >= near)):
                earlier = (nearest.scores[line] >= near) & (nearest.rows[line] < waiting[line])
                pairs = zip(nearest.rows[line][earlier].tolist(), nearest.scores[line][earlier].tolist(), strict=True)
                hits[int(waiting[line])] = list(pairs)
            waiting, width = waiting[full], min(8 * width, total)
        for row in sorted(hits):
            kept = next(((other, score) for other, score in hits[row] if of[other] < 0), None)
            if kept is not None:
                of[row], similarity[row] = kept
