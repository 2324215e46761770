"""Training neighbours that look like the picture: their outlines agree with its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rdm.retrieval.neighbours.table import NeighbourTable


@dataclass(frozen=True)
class Agreement:
    """How neighbours that agree with a training picture are drawn.

    The nearest rows of a picture show the same thing, but often in another pose or at another place. A model that
    learns from them takes reference latents for a vague hint. With neighbours whose outlines agree with the picture's,
    it learns that an image looks like its references.

    Attributes:
        share: probability that the neighbours of a picture are drawn in this way.
        draw_from: the k neighbours are drawn at random from this many stored ones, those that agree most.
        least: correlation of outlines from which on a neighbour agrees. The places that agreeing neighbours leave are
            filled with the next best ones, whose embeddings the model sees, but not their latents.
        among: in sampling, there is no picture to agree with. The neighbours after the first are those that agree most
            with the first, among this many nearest rows.

    Raises:
        ValueError: ``share`` is no probability, ``draw_from`` or ``among`` is below 1, or ``least`` no correlation.
    """

    share: float = 0.8
    draw_from: int = 4
    least: float = 0.3
    among: int = 12

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise ValueError(f"agreement.share: got {self.share}, expected a probability from 0 to 1")
        for name in ("draw_from", "among"):
            if getattr(self, name) < 1:
                raise ValueError(f"agreement.{name}: got {getattr(self, name)}, expected a number of at least 1")
        if not -1.0 <= self.least <= 1.0:
            raise ValueError(f"agreement.least: got {self.least}, expected a correlation from -1 to 1")

    def draw(
        self, table: NeighbourTable, number: int, k: int, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns k neighbours of a picture in random order, ``[k] int64``, and which of them agree, ``[k] bool``.

        Args:
            table: holds at least k neighbours of the picture.
            number: of the picture.
            k: number of neighbours.
            generator: source of the randomness.
        """
        rows, agreements = table.stored(number)
        best = np.argsort(-agreements, kind="stable")
        agreeing = best[: int((agreements[best[: self.draw_from]] >= self.least).sum())]
        drawn = generator.permutation(agreeing)[:k]
        places = np.concatenate([drawn, best[~np.isin(best, drawn)][: k - len(drawn)]])
        return rows[places], agreements[places] >= self.least
