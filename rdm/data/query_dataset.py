"""A data set of images with the embeddings of their precomputed neighbours."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Dataset

from rdm.retrieval.database import RetrievalDatabase
from rdm.retrieval.neighbours import NeighbourTable, images_hash


class QueryDataset(Dataset[dict[str, Any]]):
    """Each image with what the model may look at: items of ``images``, plus its neighbours.

    An item has two further entries: ``neighbours`` ``[K, D] float32``, the raw embeddings, best first, and
    ``neighbour_rows`` ``[K] int64``, their rows in the database. Where the table is of n x n patches a picture, they
    hold ``[n * n * K, ...]``, patch after patch. Rows that are removed from the database are left out from then on.

    Args:
        images: data set of ``ldm.data``.
        database: the database, or its folder.
        neighbours: the table made for these images, or its folder.
        k: neighbours per image, the first K of those stored.

    Raises:
        ValueError: the table is of another database or of other images, or holds fewer than k neighbours.
    """

    def __init__(
        self,
        images: Any,
        database: RetrievalDatabase | str,
        neighbours: NeighbourTable | str,
        k: int = 4,
    ) -> None:
        self.images = images
        self.database = RetrievalDatabase.open(database) if isinstance(database, str) else database
        table = NeighbourTable.open(neighbours, self.database) if isinstance(neighbours, str) else neighbours
        if table.card["database"] != self.database.fingerprint:
            raise ValueError(
                f"neighbour table {table.path} is of database {table.card['database']}, got "
                f"{self.database.fingerprint}; rerun scripts/search_neighbors.py"
            )
        if len(table) != len(images) or table.card["image_ids"] != images_hash(images):
            raise ValueError(
                f"neighbour table {table.path} was made for {len(table)} other images, got {len(images)}; "
                "rerun scripts/search_neighbors.py"
            )
        table.check_k(k)
        self.table = table
        self.k = k

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one image with its neighbours."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """Returns several images with their neighbours, which are looked up together: what a loader asks for."""
        rows = self.table.nearest(indices, self.k)
        vectors = torch.from_numpy(self.database.embeddings(rows))
        return [
            {**self.images[index], "neighbours": found, "neighbour_rows": places}
            for index, found, places in zip(indices, vectors, torch.from_numpy(rows), strict=True)
        ]

    def metadata(self, index: int) -> dict[str, str]:
        """Returns the texts of one image, without decoding it."""
        return self.images.metadata(index)
