"""Rows of a database as a page shows them: found by a text, a picture or their metadata, with licence and picture."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from rdm.retrieval.database.find import select_rows
from rdm.retrieval.database.removed import stamp
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.database.summary import Summary, summary
from rdm.retrieval.queries import mix, text_queries
from rdm.sampling.copies import DIGITS
from rdm.sampling.pipeline import Pipeline
from rdm.sampling.record import ABOUT_A_ROW
from rdm.sampling.shown import shown_picture
from rdm.sampling.values import IMAGE_WEIGHT, check_arguments
from rdm.web.studio import MOST_ROWS

ROWS = 24  # rows that a search returns if no other number is given
SIDE = 128  # longest side in pixels of the picture of a row
GIVEN = -1  # the number of a neighbour that is no row, but a picture that a user gave


@dataclass(frozen=True, eq=False)
class Row:
    """A row as it is shown.

    Attributes:
        number: its number in the database; :data:`GIVEN` for a picture that is no row.
        about: its ``image_id``, ``caption``, ``uri``, ``licence`` and ``attribution``.
        similarity: its cosine similarity to what was asked for; None if nothing was.
        png: its picture as the content of a PNG file; None if the database has lost it, or the row is removed.
        removed: whether it is removed.
    """

    number: int
    about: Mapping[str, Any]
    similarity: float | None = None
    png: bytes | None = None
    removed: bool = False

    def facts(self) -> dict[str, Any]:
        """Returns all but the picture, as JSON."""
        score = {} if self.similarity is None else {"similarity": self.similarity}
        number = {} if self.number == GIVEN else {"row": self.number}
        return {**number, **score, **self.about, **({"removed": True} if self.removed else {})}


def rows_in_words(number: int) -> str:
    """Returns a number of rows in words."""
    return "1 row" if number == 1 else f"{number:,} rows"


def search(
    pipeline: Pipeline,
    text: str = "",
    picture: Image.Image | None = None,
    only: Sequence[str] = (),
    k: int = ROWS,
) -> list[Row]:
    """Returns the rows nearest to a text, a picture or both; without either, the first rows.

    Args:
        pipeline: the embedder and the database.
        text: what the rows should show.
        picture: what they should look like.
        only: ``COLUMN=VALUE`` rules for the rows, see :func:`select_rows`.
        k: number of rows; fewer if there are not so many.

    Raises:
        ValueError: no row fits the rules, or all that do are removed.
    """
    check_arguments(k=k)
    database = pipeline.retriever.database
    chosen = select_rows(database, only) if only else None
    living = database.living_rows() if chosen is None else chosen[database.is_alive(chosen)]
    if not len(living):
        raise ValueError(f"all rows with {' and '.join(only) or 'any value'} are removed; ask for others")
    k, queries = min(k, len(living)), []
    if text.strip():
        queries.append(text_queries(pipeline.retriever.embedder, [text.strip()]))
    if picture is not None:
        queries.append(shown_picture(pipeline, picture).query(pipeline))
    if not queries:
        return shown_rows(database, living[:k])
    vector = queries[0] if len(queries) == 1 else mix(queries, [1.0, IMAGE_WEIGHT])
    try:
        found = pipeline.retriever.index.search(vector.cpu().numpy(), k, None if chosen is None else living)
    except ValueError:
        if database.is_alive(living).all():
            raise
        return search(pipeline, text, picture, only, k)  # another request removed rows meanwhile
    return shown_rows(database, found.rows[0], found.scores[0])


def shown_rows(database: RetrievalDatabase, numbers: Sequence[int] | np.ndarray, scores: Any = None) -> list[Row]:
    """Returns rows with their metadata and pictures, in the given order; removed ones without their pictures.

    Args:
        database: the database.
        numbers: the numbers of the rows.
        scores: the similarity of each; None if nothing was asked for.

    Raises:
        ValueError: there is no such row.
    """
    numbers = database.check_rows(np.asarray(numbers, dtype=np.int64))
    similar = [None] * len(numbers) if scores is None else [round(float(score), DIGITS) for score in scores]
    alive = database.is_alive(numbers)
    pngs = dict(zip(numbers[alive].tolist(), _pngs(database, numbers[alive]), strict=True))
    return [
        Row(number, {key: entry[key] for key in ABOUT_A_ROW}, score, pngs.get(number), number not in pngs)
        for number, entry, score in zip(numbers.tolist(), database.metadata(numbers), similar, strict=True)
    ]


def summary_of(database: RetrievalDatabase) -> Summary:
    """Returns what a database is, made anew only if it has changed; of a very large one nothing is counted."""
    return _summary(database, stamp(database.path))


@functools.lru_cache(maxsize=8)
def _summary(database: RetrievalDatabase, _: tuple[int, ...]) -> Summary:
    return summary(database, counted=len(database) <= MOST_ROWS)


def row_numbers(text: str, database: RetrievalDatabase) -> np.ndarray:
    """Returns the row numbers in a text such as ``3, 17, 20-25``, in ascending order, ``[n] int64``.

    Raises:
        ValueError: the text holds something else, or the database has no such row.
    """
    found = [np.empty(0, np.int64)]
    for part in filter(None, (part.strip() for part in re.split(r"[,;\s]+", re.sub(r"\s*-\s*", "-", text)))):
        match = re.fullmatch(r"([0-9]{1,18})(?:-([0-9]{1,18}))?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last or last >= len(database):
            raise ValueError(
                f"got rows '{part}', expected numbers from 0 to {len(database) - 1} such as 3, 17, 20-25; correct it"
            )
        found.append(np.arange(first, last + 1))
    return np.unique(np.concatenate(found))


def decoded_png(png: bytes) -> Image.Image:
    """Returns the picture in a PNG file that was made here."""
    return Image.open(io.BytesIO(png)).convert("RGB")


def png_of(image: Image.Image) -> bytes:
    """Returns a picture as the content of a PNG file, scaled down if it is larger than a row is shown."""
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return buffer.getvalue()


def _pngs(database: RetrievalDatabase, numbers: np.ndarray) -> list[bytes | None]:
    """Returns the pictures of rows as PNG files; None for each that the database has lost."""
    try:
        return [png_of(Image.fromarray(patch)) for patch in database.patches(numbers)]
    except (OSError, ValueError):
        return [None] if len(numbers) == 1 else [png for number in numbers for png in _pngs(database, number[None])]
