"""Changes of a database by the page: rows that are removed, and pictures that are added. Only with ``--allow-changes``.

Removed rows are gone from every search at once. After an addition, the index is built again before the page goes over
to the new rows, so a search finds either the rows before or all of them. Popular rows follow later, see
:mod:`rdm.web.popular`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ldm.files import read_json
from rdm.loading import with_database
from rdm.retrieval.database.find import find_rows
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.database.shards import CARD
from rdm.retrieval.index.faiss_index import current_index
from rdm.retrieval.upkeep.add import NewPicture, add_pictures
from rdm.sampling.pipeline import Pipeline
from rdm.web.rows import row_numbers
from rdm.web.studio import Studio

_CHANGING = threading.RLock()  # one change at a time; other processes are kept out by the locks of the database


@dataclass(frozen=True, eq=False)
class Removal:
    """What would be removed.

    Attributes:
        database: the database.
        rows: the rows that match and are not removed yet, in order, ``[n] int64``.
        before: number of rows that match and were removed before.
    """

    database: RetrievalDatabase
    rows: np.ndarray
    before: int

    def words(self) -> str:
        """Returns how many rows would be removed, and of how many."""
        gone = f"; {self.before} more that match are removed already" if self.before else ""
        return f"{len(self.rows):,} of {self.database.living_count:,} rows would be removed{gone}"


def check_allowed(studio: Studio) -> None:
    """Checks that the page may change databases.

    Raises:
        ValueError: it may not.
    """
    if not studio.allow_changes:
        raise ValueError("this page changes no database; start it with --allow-changes")


def removal(studio: Studio, name: str, rows: str = "", sources: Sequence[str] = ()) -> Removal:
    """Returns what would be removed.

    Args:
        studio: the studio.
        name: of the database.
        rows: the numbers of rows, such as ``3, 17, 20-25``.
        sources: beginnings of the URIs of rows, such as ``noto.parquet#``.

    Raises:
        ValueError: changes are not allowed, there is no such row, or nothing is named.
    """
    check_allowed(studio)
    database = fresh(studio, name).retriever.database
    if not rows.strip() and not any(sources):
        raise ValueError("got neither rows nor a source to remove, expected some; name them")
    named = [row_numbers(rows, database)]
    if any(sources):
        named.append(find_rows(database, sources=[source for source in sources if source]))
    chosen = np.unique(np.concatenate(named))
    alive = database.is_alive(chosen)
    return Removal(database, chosen[alive], int(np.count_nonzero(~alive)))


def remove(studio: Studio, name: str, rows: str = "", sources: Sequence[str] = (), count: int = 0) -> int:
    """Removes rows and returns how many.

    Args:
        studio: see :func:`removal`.
        name: see there.
        rows: see there.
        sources: see there.
        count: the number of rows that :func:`removal` has stated, which confirms the removal.

    Raises:
        ValueError: the number is another one, no row is left, or see :func:`removal`.
    """
    with _CHANGING:
        found = removal(studio, name, rows, sources)
        if count != len(found.rows) or not count:
            raise ValueError(f"got the confirmed number {count}, but {found.words()}; confirm that number")
        if len(found.rows) == found.database.living_count:
            raise ValueError(f"{found.words()}, expected that some stay; delete the folder of the database instead")
        return found.database.remove(found.rows)


def add(
    studio: Studio,
    name: str,
    pictures: Sequence[Image.Image],
    licence: str,
    attribution: str,
    captions: Sequence[str] = (),
) -> np.ndarray:
    """Adds pictures to a database and returns their rows, ``[n] int64``, which searches find from then on.

    Args:
        studio: the studio.
        name: of the database.
        pictures: 8-bit RGB.
        licence: of all of them.
        attribution: of all of them.
        captions: of the pictures, in their order; those without one get none.

    Raises:
        ValueError: changes are not allowed, or see :func:`rdm.retrieval.upkeep.add.add_pictures`.
    """
    check_allowed(studio)
    texts = [*captions, *[""] * len(pictures)]
    given = zip(pictures, texts, strict=False)
    new = [NewPicture(picture, licence.strip(), attribution.strip(), caption.strip()) for picture, caption in given]
    with _CHANGING:
        pipeline = _fresh(studio, name)
        path, size = pipeline.retriever.database.path, pipeline.data.image_size
        _, rows = add_pictures(path, new, pipeline.retriever.embedder, size)
        _fresh(studio, name)
    return rows


def fresh(studio: Studio, name: str | None) -> Pipeline:
    """Returns the pipeline of a database; opens the database again if another process has changed its rows.

    An index of other rows is built again.

    Raises:
        ValueError: there is no database of that name, or it is damaged.
    """
    pipeline = studio.pipeline(name)
    if not _is_stale(pipeline):
        return pipeline
    with _CHANGING:
        return _fresh(studio, name)


def _fresh(studio: Studio, name: str | None) -> Pipeline:
    """Does what :func:`fresh` does, while no other change is made."""
    before = studio.pipeline(name)
    if not _is_stale(before):
        return before
    path, outlines = before.retriever.database.path, before.retriever.outlines
    current_index(RetrievalDatabase.open(path), progress=False)
    least, agree = (outlines.least, outlines.agree) if outlines else (2.0, 1)
    after = with_database(before, path, same_outline=least, agree=agree)
    after.retriever.index  # noqa: B018 (opens it before a request waits for it)
    for other, pipeline in list(studio.pipelines.items()):
        if pipeline.retriever.database.path.resolve() == path.resolve():
            studio.replace(other, after)
    if studio.allow_changes:
        studio.popular.count_again(after)
    return after


def _is_stale(pipeline: Pipeline) -> bool:
    """Returns whether the database on the disk has other rows than the open one; removed rows do not count."""
    database = pipeline.retriever.database
    return read_json(database.path / CARD, "restore it").get("shards") != database.card["shards"]
