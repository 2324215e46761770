"""Outlines of pictures: they show that two rows are one drawing, even if its colours, its size or its file differ."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.pictures import from_uint8
from rdm.retrieval.database.rows import RetrievalDatabase

_SIDE = 64  # pixels of the picture that edges are taken from; their map has half of it
_FLAT = 0.1  # length of an edge map below which there is only the rounding error of scaling
_CACHED = 100_000  # rows whose outlines stay in memory: 200 MB


def outline(image: Tensor) -> np.ndarray:
    """Returns the outline of a picture: a map of its edges, centred and of length one, ``[1024] float32``.

    The product of two outlines is the correlation of the two edge maps. It is 1 for equal pictures. The outline of a
    picture without edges is zero, so it correlates with none.

    Args:
        image: ``[3, H, W]`` in [-1, 1].
    """
    picture = image[None].float()
    if picture.shape[2:] != (_SIDE, _SIDE):
        picture = F.interpolate(picture, (_SIDE, _SIDE), mode="bicubic", antialias=True)
    # NumPy from here on: for so few numbers, the threads of torch take longer than the arithmetic.
    padded = np.pad(picture[0].numpy(), ((0, 0), (1, 1), (1, 1)), mode="edge")
    across = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    down = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    edges = np.sqrt(np.square(across).sum(0) + np.square(down).sum(0))
    half = _SIDE // 2
    flat = np.sqrt(edges).reshape(half, 2, half, 2).mean((1, 3)).ravel()  # the root weakens the strongest edges
    flat -= flat.mean()
    length = np.linalg.norm(flat)
    return flat / length if length > _FLAT else np.zeros_like(flat)


class Outlines:
    """Tells which rows of a database are copies of one another, and which agree in shape and place.

    Outlines are computed when a row is first compared, and the latest ones are kept in memory.

    Args:
        database: the database; it must still have its pictures.
        least: the correlation of two outlines from which on the pictures count as copies.
        agree: the neighbours of a query are chosen among this many nearest rows, see :meth:`chosen`; 1 takes the
            nearest ones.

    Raises:
        ValueError: ``least`` is not above 0 and at most 1, or ``agree`` is below 1.
    """

    def __init__(self, database: RetrievalDatabase, least: float, agree: int = 1) -> None:
        if not 0 < least <= 1:
            raise ValueError(f"got same_outline={least}, expected a number above 0; above 1 no copies are left out")
        if agree < 1:
            raise ValueError(f"got agree={agree}, expected a number of rows of at least 1")
        self.database, self.least, self.agree = database, least, agree
        self._known: dict[int, np.ndarray] = {}

    @classmethod
    def of(cls, database: RetrievalDatabase, least: float | None, agree: int = 1) -> Outlines | None:
        """Returns the outlines of a database; None if ``least`` is None or above 1, so that no picture is a copy.

        Raises:
            ValueError: ``least`` is not above 0, ``agree`` is below 1, or it is above 1 and outlines are not compared.
        """
        if least is not None and not least > 1:
            return cls(database, least, agree)
        if agree != 1:
            raise ValueError(f"got agree={agree} with same_outline={least}, expected at most 1; set same_outline=0.9")
        return None

    def has_pictures(self) -> bool:
        """Whether the picture of the first row can be read."""
        try:
            return bool(self.database.patches([0]))
        except (FileNotFoundError, ValueError):
            return False

    def __getitem__(self, row: int) -> np.ndarray:
        """Returns the outline of a row, see :func:`outline`, rounded to float16.

        Raises:
            ValueError: the database has lost its pictures.
        """
        row = int(row)
        known = self._known.get(row)
        if known is None:
            try:
                (pixels,) = self.database.patches([row])
            except (FileNotFoundError, ValueError) as error:
                raise ValueError(f"same_outline compares pictures, but {error}; or leave same_outline out") from error
            if len(self._known) >= _CACHED:
                self._known.clear()
            image = from_uint8(torch.from_numpy(pixels).permute(2, 0, 1))
            known = self._known[row] = outline(image).astype(np.float16)
        return known.astype(np.float32)

    def agreement(self, own: np.ndarray, rows: Iterable[int]) -> np.ndarray:
        """Returns the correlation of an outline with those of rows, ``[K] float32``; 1 for the same outline.

        Args:
            own: the outline, see :func:`outline`.
            rows: row numbers.
        """
        return np.stack([self[row] for row in rows]) @ own

    def different(self, rows: Iterable[int], k: int, others: Sequence[np.ndarray] = ()) -> list[int]:
        """Returns the places of the first k rows that are copies of no earlier one, or fewer if there are no k.

        Args:
            rows: row numbers, nearest first.
            k: number of rows.
            others: outlines of further pictures that the rows must not be copies of.
        """
        kept: list[int] = []
        seen = list(others)
        for place, row in enumerate(rows):
            if len(kept) == k:
                break
            own = self[row]
            if not seen or float((np.stack(seen) @ own).max()) < self.least:
                kept.append(place)
                seen.append(own)
        return kept

    def chosen(self, rows: Sequence[int], k: int) -> list[int]:
        """Returns the places of k neighbours among rows, in their order, or fewer if there are no k different ones.

        No neighbour is a copy of a nearer one. With ``agree`` above 1, the first neighbour is the nearest row, and the
        others are those whose outlines agree most with it, among the first ``agree`` different rows.

        Args:
            rows: row numbers, nearest first.
            k: number of neighbours.
        """
        places = self.different(rows, max(k, self.agree))
        if self.agree == 1 or len(places) <= k:
            return places[:k]
        agreement = self.agreement(self[rows[places[0]]], [rows[place] for place in places[1:]])
        best = np.argsort(-agreement, kind="stable")[: k - 1]
        return [places[0], *(places[1 + int(each)] for each in np.sort(best))]
