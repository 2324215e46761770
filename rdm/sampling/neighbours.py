"""Neighbours that are chosen instead of looked up: database rows and given pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from rdm.loading import Loaded
from rdm.retrieval.index.exact import unit_vectors
from rdm.retrieval.retriever import Retrieved
from rdm.sampling.given import Picture
from rdm.sampling.request import ALONE, Request
from rdm.sampling.shown import ShownPicture, shown_picture

Neighbour = int | Picture | ShownPicture
"""The number of a database row, or a picture: its file, an open one, or one that a request shows already."""


def retrieved_rows(loaded: Loaded, numbers: np.ndarray, scores: np.ndarray) -> Retrieved:
    """Returns the given database rows as neighbours.

    Args:
        loaded: model and database.
        numbers: the numbers of the rows, ``[B, K] int64``.
        scores: the similarities of the rows to the query, ``[B, K] float32``.
    """
    vectors = torch.from_numpy(loaded.retriever.database.embeddings(numbers)).to(loaded.model.device)
    return Retrieved(vectors, numbers, scores)


def chosen_neighbours(loaded: Loaded, chosen: Sequence[Neighbour]) -> tuple[Retrieved, list[ShownPicture]]:
    """Returns the chosen neighbours of one image, ``[1, K, D]``, and the pictures among them.

    In place of a row, picture i has the number ``-1 - i``. Similarities are not known and therefore NaN.

    Args:
        loaded: model and database.
        chosen: the neighbours, in their order.

    Raises:
        FileNotFoundError: the file of a picture does not exist.
        ValueError: a row does not exist, or a picture is none.
    """
    stored = loaded.retriever.database.embeddings(_rows_among(chosen))
    vectors, pictures, numbers, found = iter(torch.from_numpy(stored).to(loaded.model.device)), [], [], []
    for each in chosen:
        if isinstance(each, int | np.integer):
            numbers.append(int(each))
            found.append(next(vectors))
        else:
            pictures.append(each if isinstance(each, ShownPicture) else shown_picture(loaded, each))
            numbers.append(-len(pictures))
            found.append(pictures[-1].query(loaded)[0])
    rows = np.array([numbers], dtype=np.int64)
    return Retrieved(torch.stack(found)[None], rows, np.full(rows.shape, np.nan, np.float32)), pictures


def _rows_among(chosen: Sequence[Neighbour]) -> np.ndarray:
    return np.array([each for each in chosen if isinstance(each, int | np.integer)], dtype=np.int64)


def check_chosen(loaded: Loaded, chosen: Sequence[Neighbour]) -> None:
    """Checks neighbours that a user chooses, except for the files of pictures.

    Raises:
        ValueError: there is none, a row does not exist or is removed, or one is neither a row nor a picture; or the
            model has no database.
    """
    database = loaded.retriever.database
    if not len(chosen):
        raise ValueError("got no neighbour, expected at least one row of the database or picture; give one")
    for each in chosen:
        if isinstance(each, bool) or not isinstance(each, int | np.integer | str | Path | Image.Image | ShownPicture):
            raise ValueError(f"got {each!r} as a neighbour, expected the number of a row, a file or a PIL image")
    rows = database.check_rows(_rows_among(chosen))
    if len(removed := rows[~database.is_alive(rows)]):
        raise ValueError(f"row {removed[0]} is removed from database {database.path}; give another row or a picture")


def with_neighbours(loaded: Loaded, request: Request, place: int, chosen: Sequence[Neighbour]) -> Request:
    """Returns the request for one image of a request, with other neighbours.

    Whatever is not chosen is left out. The similarity of a neighbour that stays is kept. That of another one is its
    cosine similarity to the query vector, or NaN if the request has none. Images of one request have equal numbers of
    neighbours; so :func:`rdm.sampling.request.together` joins such requests only if their numbers are equal.

    Args:
        loaded: model and database.
        request: the request.
        place: the place of the image in the request, from 0.
        chosen: its neighbours, in the order in which the model sees them.

    Raises:
        FileNotFoundError: the file of a picture does not exist.
        ValueError: there is no such image; the model does not see its neighbours, or has no database; no neighbour is
            chosen, a row does not exist or is removed, or a picture is none.
    """
    check_chosen(loaded, chosen)
    if request.tokens in ALONE:
        raise ValueError(
            f"got neighbours with tokens '{request.tokens}', with which the model does not see them; ask with tokens "
            "'neighbours' or 'both'"
        )
    if not 0 <= place < len(request.seeds):
        raise ValueError(f"got place {place}, expected 0 to {len(request.seeds) - 1}, a place in the request")
    part = request.part([place])
    found, pictures = chosen_neighbours(loaded, chosen)
    before, now = _named(part.retrieved.rows[0], part.pictures), _named(found.rows[0], pictures)
    if now == before:
        return part
    kept, fresh = dict(zip(before, part.retrieved.scores[0].tolist(), strict=True)), _similarities(found, part)
    scores = np.array([kept.get(each, score) for each, score in zip(now, fresh, strict=True)], dtype=np.float32)
    return replace(
        part,
        retrieved=replace(found, scores=scores[None]),
        pictures=pictures,
        asked={**part.asked, "neighbours": "chosen"},
    )


def _named(rows: np.ndarray, pictures: Sequence[ShownPicture]) -> list[Any]:
    """Returns what each number stands for: a row, or a picture."""
    return [pictures[-1 - row] if row < 0 else row for row in rows.tolist()]


def _similarities(found: Retrieved, request: Request) -> np.ndarray:
    """Returns the cosine similarity of the neighbours of one image to its query, ``[K] float32``; NaN without one."""
    if request.queries is None:
        return found.scores[0]
    query = unit_vectors(request.queries.float().cpu().numpy(), "query")[0]
    return unit_vectors(found.embeddings[0].float().cpu().numpy(), "neighbour") @ query
