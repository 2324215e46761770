"""Which picture of a set is each of some others most like: by named features, exactly, block by block.

Likeness is the cosine of feature vectors. Two features are known: ``embedder``, the database's own (Somepalli et al.
2023 look for replicas in the space of a descriptor), and ``pixels``, the mean colours of 16 x 16 cells less the mean of
them all. The first may call two things of a kind alike, the second two of one outline; a copy is high in both.
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

from ldm.data.decode import decode_image
from rdm.retrieval.database.pictures import pictures
from rdm.retrieval.index.exact import unit_vectors
from rdm.retrieval.neighbours.search import picture_vectors, rows_by_picture
from rdm.retrieval.retriever import Retriever

EMBEDDER, PIXELS = "embedder", "pixels"
CELLS = 16  # a side
_BLANK = 1e-6  # length below which a picture is of one colour
_AT_ONCE = 256  # pictures in memory


@dataclass(frozen=True)
class Pictures:
    """Some pictures by their features.

    Attributes:
        numbers: where each is in its source, ``[n] int64``.
        ids: of images; ``""`` where it has none.
        vectors: of each feature, ``[n, D] float32`` of length one, or zero for a picture of one colour.
    """

    numbers: np.ndarray
    ids: list[str]
    vectors: dict[str, np.ndarray]


@dataclass(frozen=True)
class Nearest:
    """The nearest picture to each of n.

    Attributes:
        numbers: ``[n] int64``, -1 where there is none; of equally near ones the first.
        similarities: cosine, ``[n] float32``.
    """

    numbers: np.ndarray
    similarities: np.ndarray


def pixel_vectors(images: Sequence[Tensor]) -> np.ndarray:
    """Returns the pixel feature of images ``[3, H, W]``, ``[n, 3 * 16 * 16] float32`` of length one, or zero."""
    cells = torch.stack([F.interpolate(image[None].double(), (CELLS, CELLS), mode="area")[0] for image in images])
    flat = cells.flatten(1)
    flat = flat - flat.mean(dim=1, keepdim=True)
    lengths = flat.norm(dim=1, keepdim=True)
    return torch.where(lengths > _BLANK, flat / lengths, 0.0).float().numpy()


class Features:
    """Measures pictures.

    Args:
        retriever: embedder and database; vectors of pictures that are rows are read from it.
        size: side in pixels at which pictures are compared.
    """

    def __init__(self, retriever: Retriever, size: int) -> None:
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
        """Returns name and hash of each feature."""
        cells = f"means of {CELLS} x {CELLS} cells in red, green and blue, less the mean of all"
        return {
            EMBEDDER: {"name": self.embedder.name, "fingerprint": self.embedder.fingerprint},
            PIXELS: {"name": cells, "fingerprint": "no weights"},
        }


class SampleFiles:
    """Pictures in files, as the items of a data set without ids.

    Args:
        files: the pictures.
        size: side in pixels to which they are brought.
    """

    def __init__(self, files: Sequence[Path], size: int) -> None:
        self.files, self.size = files, size

    def __len__(self) -> int:
        """Returns the number of pictures."""
        return len(self.files)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Returns a picture.

        Raises:
            ValueError: its file cannot be read.
        """
        try:
            return {"image": decode_image(self.files[number].read_bytes(), self.size), "id": ""}
        except ValueError as error:
            raise ValueError(f"{self.files[number]}: {error}") from error


def blocks_of_images(images: Any, numbers: Sequence[int], features: Features) -> Iterator[Pictures]:
    """Yields some items of a data set."""
    for start in range(0, len(numbers), _AT_ONCE):
        part = numbers[start : start + _AT_ONCE]
        items = [images[number] for number in part]
        ids = [item["id"] for item in items]
        yield Pictures(np.array(part, np.int64), ids, features.of_images([item["image"] for item in items], ids))


def blocks_of_rows(features: Features) -> Iterator[Pictures]:
    """Yields all rows of the database that are not removed."""
    database = features.database
    rows = database.living_rows()
    for start in range(0, len(rows), _AT_ONCE):
        part = rows[start : start + _AT_ONCE]
        yield Pictures(part, database.values("image_id", part).tolist(), features.of_rows(part))


def block_count(total: int) -> int:
    """Returns how many blocks so many pictures come in."""
    return -(-total // _AT_ONCE)


def joined(parts: Iterable[Pictures]) -> Pictures:
    """Returns the pictures of several blocks as one."""
    every = list(parts)
    vectors = {name: np.concatenate([part.vectors[name] for part in every]) for name in every[0].vectors}
    return Pictures(
        np.concatenate([part.numbers for part in every]), [name for part in every for name in part.ids], vectors
    )


def nearest(
    asked: Mapping[str, Pictures], parts: Iterable[Pictures], near_duplicate: Mapping[str, float]
) -> dict[str, dict[str, Nearest]]:
    """Returns the nearest picture of a set to each of several groups, by group and feature.

    A picture is not compared with itself, that is with those of its own id, such as its patches.

    Args:
        asked: the groups.
        parts: the set, in blocks.
        near_duplicate: for a group named here, pictures at least this similar by the embedder are left out, too, as in
            a neighbour table.
    """
    places = {name: _places_by_id(group.ids) for name, group in asked.items()}
    found = {name: {feature: _nothing(len(group.ids)) for feature in group.vectors} for name, group in asked.items()}
    for part in parts:
        for name, group in asked.items():
            own = [(place, j) for j, other in enumerate(part.ids) for place in places[name].get(other, ())]
            scores = {feature: queries @ part.vectors[feature].T for feature, queries in group.vectors.items()}
            same = scores[EMBEDDER] >= near_duplicate.get(name, np.inf)
            for place, j in own:
                same[place, j] = True
            for feature in scores:
                scores[feature][same] = -np.inf
                _improve(found[name][feature], scores[feature], part.numbers)
    return found


def _places_by_id(ids: Sequence[str]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for place, name in enumerate(ids):
        if name:
            places.setdefault(name, []).append(place)
    return places


def _nothing(n: int) -> Nearest:
    return Nearest(np.full(n, -1, np.int64), np.full(n, -np.inf, np.float32))


def _improve(found: Nearest, scores: np.ndarray, numbers: np.ndarray) -> None:
    """Takes what is nearer than all before, of similarities ``[n, B]`` to pictures of numbers ``[B]``."""
    best = scores.argmax(axis=1)
    values = np.minimum(scores[np.arange(len(scores)), best], 1.0)  # rounding may pass 1
    nearer = values > found.similarities
    found.numbers[nearer], found.similarities[nearer] = numbers[best[nearer]], values[nearer]
