"""Exact search for the nearest picture of a set, block by block, in two feature spaces.

Similarity is the cosine of feature vectors. The feature ``embedder`` is the embedding of the database; Somepalli et al.
2023 also search for replicas in the space of a descriptor. The feature ``pixels`` holds the mean colours of 16 x 16
cells, minus the mean of all. The first similarity may be high for two things of the same kind, the second for two
things of the same outline. For a copy, both are high.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.data.decode import Size, decode_image
from ldm.pictures import with_channels
from rdm.retrieval.database.pictures import pictures
from rdm.retrieval.index.exact import unit_vectors
from rdm.retrieval.neighbours.search import picture_vectors, rows_by_picture
from rdm.retrieval.retriever import Retriever

EMBEDDER, PIXELS = "embedder", "pixels"
CELLS = 16  # cells along a side
_BLANK = 1e-6  # length of the pixel feature below which a picture has only one colour
_BLOCK = 256  # pictures in memory


@dataclass(frozen=True)
class Pictures:
    """The features of some pictures.

    Attributes:
        numbers: number of each picture in its source, ``[n] int64``.
        ids: image id of each picture, or ``""`` if it has none.
        vectors: for each feature, ``[n, D] float32`` of length one, or zero for a picture of one colour.
    """

    numbers: np.ndarray
    ids: list[str]
    vectors: dict[str, np.ndarray]


@dataclass(frozen=True)
class Nearest:
    """The nearest picture to each of n pictures.

    Attributes:
        numbers: number of the nearest picture, ``[n] int64``; the first of equally near ones, or -1 if there is none.
        similarities: its cosine similarity, ``[n] float32``.
    """

    numbers: np.ndarray
    similarities: np.ndarray


def pixel_vectors(images: Sequence[Tensor]) -> np.ndarray:
    """Returns the pixel feature of images ``[3, H, W]``, ``[n, 3 * 16 * 16] float32`` of length one, or zero."""
    coloured = [with_channels(image, 3)[None].double() for image in images]
    cells = torch.stack([F.interpolate(image, (CELLS, CELLS), mode="area")[0] for image in coloured])
    flat = cells.flatten(1)
    flat = flat - flat.mean(dim=1, keepdim=True)
    lengths = flat.norm(dim=1, keepdim=True)
    return torch.where(lengths > _BLANK, flat / lengths, 0.0).float().numpy()


class Features:
    """Computes the features of pictures.

    Args:
        retriever: embedder and database; the embeddings of pictures that are database rows are read from it.
        size: size in pixels at which pictures are compared.
    """

    def __init__(self, retriever: Retriever, size: Size) -> None:
        self.database, self.embedder, self.size = retriever.database, retriever.embedder, size
        self._known = rows_by_picture(self.database)

    def of_images(self, images: Sequence[Tensor], ids: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns the vectors of images ``[3, H, W]`` in [-1, 1]."""
        vectors = picture_vectors(list(zip(images, ids, strict=True)), self.embedder, self.database, self._known)
        return {EMBEDDER: unit_vectors(vectors, "picture"), PIXELS: pixel_vectors(images)}

    def of_rows(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the vectors of rows ``[n] int64`` of the database."""
        images = list(pictures(self.database, rows, self.size))
        return {EMBEDDER: unit_vectors(self.database.embeddings(rows), "row"), PIXELS: pixel_vectors(images)}

    def about(self) -> dict[str, dict[str, str]]:
        """Returns the name and the fingerprint of each feature."""
        cells = f"means of {CELLS} x {CELLS} cells in red, green and blue, less the mean of all"
        return {
            EMBEDDER: {"name": self.embedder.name, "fingerprint": self.embedder.fingerprint},
            PIXELS: {"name": cells, "fingerprint": "no weights"},
        }


class SampleFiles:
    """Pictures in files, as the items of a data set without ids.

    Args:
        files: the files.
        size: size in pixels that pictures are resized to.
    """

    def __init__(self, files: Sequence[Path], size: Size) -> None:
        self.files, self.size = files, size

    def __len__(self) -> int:
        """Returns the number of pictures."""
        return len(self.files)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Returns a picture.

        Raises:
            ValueError: the file cannot be read.
        """
        try:
            return {"image": decode_image(self.files[number].read_bytes(), self.size), "id": ""}
        except ValueError as error:
            raise ValueError(f"{self.files[number]}: {error}") from error


def blocks_of_images(images: Any, numbers: Sequence[int], features: Features) -> Iterator[Pictures]:
    """Yields the features of the items of a data set with these numbers, in blocks."""
    for start in range(0, len(numbers), _BLOCK):
        part = numbers[start : start + _BLOCK]
        items = [images[number] for number in part]
        ids = [item["id"] for item in items]
        yield Pictures(np.array(part, np.int64), ids, features.of_images([item["image"] for item in items], ids))


def blocks_of_rows(features: Features) -> Iterator[Pictures]:
    """Yields the features of all database rows that are not removed, in blocks."""
    database = features.database
    rows = database.living_rows()
    for start in range(0, len(rows), _BLOCK):
        part = rows[start : start + _BLOCK]
        yield Pictures(part, database.values("image_id", part).tolist(), features.of_rows(part))


def block_count(total: int) -> int:
    """Returns the number of blocks of a number of pictures."""
    return -(-total // _BLOCK)


def concatenate(blocks: Iterable[Pictures]) -> Pictures:
    """Returns the pictures of several blocks as one block."""
    every = list(blocks)
    vectors = {name: np.concatenate([part.vectors[name] for part in every]) for name in every[0].vectors}
    return Pictures(
        np.concatenate([part.numbers for part in every]), [name for part in every for name in part.ids], vectors
    )


def nearest(
    groups: Mapping[str, Pictures], blocks: Iterable[Pictures], near_duplicate: Mapping[str, float]
) -> dict[str, dict[str, Nearest]]:
    """Returns the nearest picture of a set for each picture of several groups, by group and feature.

    A picture is not compared with pictures of the same id, that is with itself and with its patches.

    Args:
        groups: the groups.
        blocks: the set, in blocks.
        near_duplicate: similarity by group; for the groups named here, pictures with at least this similarity by the
            embedder are left out too, as in a neighbour table.
    """
    places = {name: _places_by_id(group.ids) for name, group in groups.items()}
    best = {
        name: {feature: _no_neighbours(len(group.ids)) for feature in group.vectors} for name, group in groups.items()
    }
    for block in blocks:
        for name, group in groups.items():
            same_id = [(place, j) for j, other in enumerate(block.ids) for place in places[name].get(other, ())]
            scores = {feature: queries @ block.vectors[feature].T for feature, queries in group.vectors.items()}
            excluded = scores[EMBEDDER] >= near_duplicate.get(name, np.inf)
            for place, j in same_id:
                excluded[place, j] = True
            for feature in scores:
                scores[feature][excluded] = -np.inf
                _update(best[name][feature], scores[feature], block.numbers)
    return best


def _places_by_id(ids: Sequence[str]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for place, name in enumerate(ids):
        if name:
            places.setdefault(name, []).append(place)
    return places


def _no_neighbours(n: int) -> Nearest:
    return Nearest(np.full(n, -1, np.int64), np.full(n, -np.inf, np.float32))


def _update(nearest_so_far: Nearest, scores: np.ndarray, numbers: np.ndarray) -> None:
    """Takes over the pictures of a block that are nearer than all before.

    Args:
        nearest_so_far: is changed in place.
        scores: similarities to the pictures of the block, ``[n, B]``.
        numbers: the numbers of these pictures, ``[B]``.
    """
    best = scores.argmax(axis=1)
    values = np.minimum(scores[np.arange(len(scores)), best], 1.0)  # rounding may lead to more than 1
    nearer = values > nearest_so_far.similarities
    nearest_so_far.numbers[nearer] = numbers[best[nearer]]
    nearest_so_far.similarities[nearer] = values[nearer]
