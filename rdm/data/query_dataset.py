"""A data set of images with the embeddings of their neighbours, and the sampler that sets its order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from ldm.data.datamodule import ResumableSampler
from ldm.data.hub import check_random_access
from ldm.data.identity import images_hash
from ldm.models.diffusion.stepping import seeded_generator
from rdm.data.agreement import Agreement
from rdm.data.row_tables import RowTable
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.neighbours.table import NeighbourTable

REFERENCES = "references"  # the table of the latents of rows, and their name in a batch


class Drawn(NamedTuple):
    """An image that a sampler requests.

    Attributes:
        image: its number.
        by_caption: whether it comes with the neighbours of its caption instead of its own.
        seed: of the draw of its k neighbours among the ``draw_from`` nearest ones; None for the k nearest.
    """

    image: int
    by_caption: bool = False
    seed: int | None = None


class NeighbourSampler(ResumableSampler):
    """Requests images with neighbours that differ from epoch to epoch; the order is that of the base class.

    A share of the images comes with the neighbours of their captions, and each image with a seed for the draw of its
    neighbours. Both are drawn for each image in each epoch and depend only on the seed and the epoch, not on the
    device, the loader's workers or whether the run was resumed.

    Args:
        dataset: a :class:`QueryDataset`.
        share: probability that an image comes with the neighbours of its caption; above 0, the data set needs them.
        draw: whether the neighbours of an image are drawn; False requests the nearest ones.
        options: arguments of :class:`ResumableSampler`.
    """

    def __init__(self, dataset: Dataset[Any], share: float, draw: bool, **options: Any) -> None:
        super().__init__(dataset, **options)
        self.share, self.draw = share, draw
        self.images = len(dataset)  # type: ignore[arg-type]  # a data set of known length

    def __iter__(self) -> Iterator[Drawn]:
        """The remaining samples of this epoch."""
        generator = seeded_generator(self.seed, 1, self.epoch)  # the order is drawn from seed + epoch
        by_caption = (torch.rand(self.images, generator=generator) < self.share).tolist()
        seeds = torch.randint(2**62, (self.images,), generator=generator) if self.draw else None
        return (
            Drawn(image, by_caption[image], None if seeds is None else int(seeds[image]))
            for image in super().__iter__()
        )


class QueryDataset(Dataset[dict[str, Any]]):
    """Adds the neighbours of each image to the items of a data set.

    An item gets two further entries: ``neighbours`` ``[K, D] float32``, the raw embeddings, nearest first, and
    ``neighbour_rows`` ``[K] int64``, their rows in the database. With a table of n x n patches per picture they have
    the shape ``[n * n * K, ...]``, patch after patch. Rows that are removed from the database are left out from that
    moment on.

    ``dataset[i]`` has the k nearest neighbours of image i, ``dataset[Drawn(i, by_caption=True)]`` those of its caption,
    and ``dataset[Drawn(i, seed=7)]`` k neighbours that are drawn with this seed.

    Args:
        images: data set of ``ldm.data``.
        database: the database, or its folder.
        neighbours: the table made for these images, or its folder.
        k: neighbours per image, K; the first of those stored.
        captions: the table of the neighbours of these images' captions; needed for images requested by caption.
        draw_from: the number of nearest neighbours that those of an image with a seed are drawn from; k if not given.
        agreement: how neighbours are drawn whose outlines agree with those of an image with a seed; the tables must
            say how much they agree. The ``references`` of neighbours that do not agree are zeros. None for the draw
            from the nearest ones alone.
        further: name -> values of the rows in these tables; items then get the values of their neighbours as a further
            entry of that name, such as ``references`` ``[K, C, h, w] float16`` or ``neighbour_tokens``
            ``[K, g * g, D'] float16``.
        own: the rows that show the images themselves, ``[N] int64``, in the table of ``references``; items then get a
            further entry ``latent`` ``[C, h, w] float16``.

    Raises:
        ValueError: a table belongs to another database or other images, holds fewer than k or ``draw_from`` neighbours,
            or ``draw_from`` is below k.
    """

    def __init__(
        self,
        images: Any,
        database: RetrievalDatabase | str,
        neighbours: NeighbourTable | str,
        k: int = 4,
        captions: NeighbourTable | None = None,
        draw_from: int | None = None,
        agreement: Agreement | None = None,
        further: Mapping[str, RowTable] | None = None,
        own: np.ndarray | None = None,
    ) -> None:
        check_random_access(images, "images with neighbours")
        self.images, self.order = images, getattr(images, "order", None)
        self.database = RetrievalDatabase.open(database) if isinstance(database, str) else database
        table = NeighbourTable.open(neighbours, self.database) if isinstance(neighbours, str) else neighbours
        self.table, self.captions = table, captions
        self.k, self.draw_from, self.further, self.own = k, draw_from or k, dict(further or {}), own
        self.agreement = agreement
        if self.draw_from < k:
            raise ValueError(f"got draw_from={draw_from}, expected at least k={k}")
        ids = images_hash(images)
        for each in (table, captions):
            if each is not None:
                self._check(each, ids)

    def _check(self, table: NeighbourTable, ids: str) -> None:
        if table.card["database"] != self.database.fingerprint:
            raise ValueError(
                f"neighbour table {table.path} belongs to database {table.card['database']}, got "
                f"{self.database.fingerprint}; rerun scripts/search_neighbors.py"
            )
        if len(table) != len(self.images) or table.card["image_ids"] != ids:
            raise ValueError(
                f"neighbour table {table.path} belongs to {len(table)} other images, got {len(self.images)}; "
                "rerun scripts/search_neighbors.py"
            )
        table.check_k(self.draw_from)

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.images)

    def __getitem__(self, index: int | Drawn) -> dict[str, Any]:
        """Returns one image with its neighbours."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int | Drawn]) -> list[dict[str, Any]]:
        """Returns several images with their neighbours, which are read together; loaders call this."""
        drawn = [index if isinstance(index, Drawn) else Drawn(index) for index in indices]
        rows, shown = self._neighbours(drawn)
        columns = {
            "neighbours": torch.from_numpy(self.database.embeddings(rows)),
            "neighbour_rows": torch.from_numpy(rows),
            **{name: each.of_rows(rows) for name, each in self.further.items()},
        }
        if REFERENCES in columns and not shown.all():
            columns[REFERENCES] = columns[REFERENCES] * torch.from_numpy(shown)[:, :, None, None, None]
        if self.own is not None:
            columns["latent"] = self.further[REFERENCES].of_rows(self.own[[each.image for each in drawn]])
        return [
            {**self.images[each.image], **{name: values[line] for name, values in columns.items()}}
            for line, each in enumerate(drawn)
        ]

    def _neighbours(self, drawn: Sequence[Drawn]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the rows of :meth:`_rows` and whose latents are shown, ``[B, K] bool``; some are drawn by agreement.

        Raises:
            ValueError: see :meth:`_rows`.
        """
        rows = self._rows(drawn)
        shown = np.ones(rows.shape, dtype=bool)
        if self.agreement is None:
            return rows, shown
        for line, each in enumerate(drawn):
            if each.seed is None:
                continue
            generator = np.random.default_rng([each.seed, 1])  # with the seed alone, the nearest ones are drawn
            if generator.random() < self.agreement.share:
                table = self.captions if each.by_caption and self.captions is not None else self.table
                rows[line], shown[line] = self.agreement.draw(table, each.image, self.k, generator)
        return rows, shown

    def _rows(self, drawn: Sequence[Drawn]) -> np.ndarray:
        """Returns the database rows that images have as neighbours, ``[B, K] int64``.

        Raises:
            ValueError: an image is requested by its caption, but there is no table for captions.
        """
        if self.captions is None and any(each.by_caption for each in drawn):
            raise ValueError(
                "got images requested by caption, but no table of the neighbours of captions; give captions"
            )
        rows: list[np.ndarray] = [np.empty(0)] * len(drawn)
        for table, by_caption in ((self.table, False), (self.captions, True)):
            places = [place for place, each in enumerate(drawn) if each.by_caption == by_caption]
            if table is not None and places:
                nearest = table.nearest([drawn[place].image for place in places], self.draw_from)
                for place, line in zip(places, nearest.reshape(len(places), -1, self.draw_from), strict=True):
                    rows[place] = line[_drawn_places(line.shape, self.k, drawn[place].seed)].reshape(-1)
        return np.stack(rows)

    def metadata(self, index: int) -> dict[str, str]:
        """Returns the texts of one image without decoding it."""
        return self.images.metadata(index)


def _drawn_places(shape: tuple[int, ...], k: int, seed: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices of k of the m entries of each line, in their order; the first k without a seed.

    Args:
        shape: ``(lines, m)``.
        k: entries per line.
        seed: of the draw, which is uniform and without replacement; each line has a draw of its own.
    """
    lines, m = shape
    order = np.tile(np.arange(m), (lines, 1)) if seed is None else np.random.default_rng(seed).random(shape).argsort(1)
    return np.arange(lines)[:, None], np.sort(order[:, :k], axis=1)
