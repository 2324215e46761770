"""Finds the rows nearest to pictures without the pictures' own rows and near-duplicates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from rdm.retrieval.database.outlines import Outlines
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.embedder import Embedder, embed_images
from rdm.retrieval.index.exact import Neighbours, cosine, unit_vectors
from rdm.retrieval.index.search import SearchIndex, search_chosen
from rdm.retrieval.patches.identity import picture_hash, to_pixels

_REUSE_ROWS = 2_000_000  # larger databases do not hold the hashes of their pictures in memory


class Drawings(NamedTuple):
    """What shows that rows are copies of pictures.

    Attributes:
        outlines: those of the database.
        of_pictures: the outline of each picture, ``[1024]``.
    """

    outlines: Outlines
    of_pictures: Sequence[np.ndarray]

    def agreement(self, rows: np.ndarray) -> np.ndarray:
        """Returns the correlation of the outline of each picture with those of rows ``[B, K]``, ``[B, K] float16``."""
        lines = zip(self.of_pictures, rows, strict=True)
        return np.stack([self.outlines.agreement(own, line) for own, line in lines]).astype(np.float16)


def split_picture(image: Tensor, per_side: int) -> list[Tensor]:
    """Returns the n x n patches of a picture ``[3, H, W]``, row by row, each ``[3, H // n, W // n]``.

    Raises:
        ValueError: n is below 1 or larger than a side.
    """
    height, width = (side // max(per_side, 1) for side in image.shape[1:])
    if per_side < 1 or not height or not width:
        raise ValueError(f"got patches_per_side={per_side}, expected 1 to {min(image.shape[1:])}, the side in pixels")
    corners = [(row * height, column * width) for row in range(per_side) for column in range(per_side)]
    return [image[:, y : y + height, x : x + width] for y, x in corners]


def rows_by_picture(database: RetrievalDatabase) -> dict[str, int]:
    """Returns the row of each picture hash; empty if the database is too large to hold all hashes in memory."""
    if len(database) > _REUSE_ROWS:
        return {}
    return {digest: row for row, digest in enumerate(database.column("sha256").to_pylist())}


def picture_vectors(
    parts: list[tuple[Tensor, str]], embedder: Embedder, database: RetrievalDatabase, known: Mapping[str, int]
) -> np.ndarray:
    """Returns the raw vectors ``[B, D] float32`` of pictures.

    Args:
        parts: B pictures ``[3, H, W]`` with their names.
        embedder: embeds the pictures that are not in the database.
        database: holds the vectors of the other ones.
        known: the row of each picture hash, see :func:`rows_by_picture`.
    """
    rows = np.array([known.get(picture_hash(to_pixels(image)), -1) for image, _ in parts])
    vectors = np.empty((len(parts), embedder.dim), dtype=np.float32)
    vectors[rows >= 0] = database.embeddings(rows[rows >= 0])
    new = [part for part, row in zip(parts, rows, strict=True) if row < 0]
    if new:
        vectors[rows < 0] = embed_images(embedder, [image for image, _ in new], [name for _, name in new])
    return vectors


def search_without_copies(
    queries: np.ndarray,
    ids: list[str],
    database: RetrievalDatabase,
    index: SearchIndex,
    k: int,
    near_duplicate: float,
    pictures: np.ndarray | None = None,
    drawings: Drawings | None = None,
) -> np.ndarray:
    """Returns the k nearest rows of each picture without its own rows and near-duplicates, ``[B, k] int64``.

    Args:
        queries: ``[B, D] float32``, raw vectors of the pictures or, for example, of their captions.
        ids: the image ids of the pictures.
        database: the database.
        index: its index.
        k: neighbours per picture.
        near_duplicate: rows at least this similar to the picture are left out.
        pictures: ``[B, D] float32``, raw vectors of the pictures; None if they are the queries.
        drawings: if given, rows with the outline of the picture or of a nearer neighbour are left out as well.

    Raises:
        ValueError: fewer than k rows are left for a picture, or their outlines are needed and have no pictures.
    """
    names = np.array(ids, dtype=object)
    unit = None if pictures is None else unit_vectors(pictures, "picture")

    def choose(places: np.ndarray, near: Neighbours) -> list[np.ndarray]:
        similarity = near.scores if unit is None else cosine(index.reader, unit[places], near.rows)
        own = database.values("image_id", near.rows) == names[places, None]
        keep = ~own & (similarity < near_duplicate) & database.is_alive(near.rows)
        chosen = [np.flatnonzero(line) for line in keep]
        if drawings is None:
            return chosen
        outlines, of_pictures = drawings
        return [
            line[outlines.different(near.rows[number][line], k, [of_pictures[place]])]
            for number, (place, line) in enumerate(zip(places, chosen, strict=True))
        ]

    def short(place: int, count: int) -> str:
        outlines = "" if drawings is None else f" or same_outline={drawings.outlines.least}"
        return (
            f"image '{ids[place]}' has {count} neighbours in {database.path} besides itself and near-duplicates, "
            f"expected k={k}; ask for fewer neighbours or raise near_duplicate={near_duplicate}{outlines}"
        )

    return search_chosen(index, queries, k, choose, short).rows
