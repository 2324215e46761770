"""Contact sheet: one picture that shows every sample next to its neighbours, or the samples alone in a grid.

The sample of an edit has the edited picture to its left. A sample that is flagged as a copy has a red frame. Neighbours
are left out if the model did not see them because the context was the query alone, as that of a draft is.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from ldm.pictures import image_grid, save_png, with_channels
from rdm.retrieval.database.pictures import framed_pictures
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.sampling.request import ALONE, together
from rdm.sampling.samples import Samples, joined
from rdm.sampling.shown import ShownRows

LOG = logging.getLogger(__name__)
ROWS = 64  # of a sheet
GAP = 2  # pixels between pictures
RED = (220, 0, 0)


class Sheets:
    """The contact sheets of images that come a batch at a time. Each has :data:`ROWS` rows, the last one perhaps fewer.

    Args:
        database: provides the pictures of the neighbours; None for a plain model, which has none.
        first: the file of the first sheet; those after it are ``<stem>-2.png``, ``<stem>-3.png`` and so on.
        per_row: see :func:`sheet`.
    """

    def __init__(self, database: RetrievalDatabase | None, first: Path, per_row: int | None = None) -> None:
        self.database, self.first, self.per_row = database, first, per_row
        self._waiting: list[Samples] = []
        self._written = 0

    def add(self, samples: Samples) -> None:
        """Adds images, and writes the sheets that they complete."""
        self._waiting.append(samples)
        full = ROWS * (self.per_row or 1)
        while sum(len(each.seeds) for each in self._waiting) >= full:
            self._write(full)

    def finish(self) -> None:
        """Writes the last sheet, if there are images that are on none yet."""
        if self._waiting:
            self._write(sum(len(each.seeds) for each in self._waiting))

    def _write(self, count: int) -> None:
        """Writes a sheet of the first images that wait."""
        waiting = joined(together([each.request for each in self._waiting]), self._waiting)
        self._waiting = [waiting.part(range(count, len(waiting.seeds)))] if count < len(waiting.seeds) else []
        self._written += 1
        number = "" if self._written == 1 else f"-{self._written}"
        file = self.first.with_name(f"{self.first.stem}{number}{self.first.suffix}")
        save_png(sheet(waiting.part(range(count)), self.database, self.per_row), file)
        if number:
            LOG.info("the sheet goes on in %s", file)


def sheet(samples: Samples, database: RetrievalDatabase | None, per_row: int | None = None) -> Tensor:
    """Returns the contact sheet, ``[3, H', W'] uint8``.

    Args:
        samples: the images.
        database: provides the pictures of the neighbours; None for a plain model, which has none.
        per_row: number of images in a row of a grid without neighbours; None shows the neighbours.
    """
    images, (height, width), first = with_channels(samples.images, 3), samples.images.shape[2:], 0
    request = samples.request
    if per_row is None:
        per_row = 1
        columns = {}
        if request.canvas is not None:
            columns["picture"] = request.canvas.picture.expand(len(images), -1, -1, -1)
        first, columns["sample"] = len(columns), images
        if database is not None and request.tokens not in ALONE:
            shown = ShownRows(database, request.pictures)
            columns["neighbours"] = framed_pictures(shown, request.retrieved.rows, height, width)
            columns["neighbours"][[samples.is_draft(place) for place in range(len(images))]] = 1.0
        page = image_grid(columns, GAP)
    else:
        per_row = min(per_row, len(images))
        blank = images.new_ones(-len(images) % per_row, *images.shape[1:])
        page = image_grid({"samples": torch.cat([images, blank]).unflatten(0, (-1, per_row))}, GAP)
    for i, likeness in enumerate(samples.copies or []):
        if likeness.is_copy:
            frame(page, i // per_row * (height + GAP), (first + i % per_row) * (width + GAP), height, width)
    return page


def frame(page: Tensor, top: int, left: int, height: int, width: int) -> None:
    """Colours the gap around a picture on the page red; the gap begins at ``top`` and ``left``."""
    outside = page[:, top : top + height + 2 * GAP, left : left + width + 2 * GAP]
    inside = outside[:, GAP:-GAP, GAP:-GAP].clone()
    outside[:] = torch.tensor(RED, dtype=page.dtype)[:, None, None]
    outside[:, GAP:-GAP, GAP:-GAP] = inside
