"""Contact sheet: one picture that shows every sample next to its neighbours, or the samples alone in a grid.

The sample of an edit has the edited picture to its left. A sample that is flagged as a copy has a red frame. Neighbours
are left out if the model did not see them because the context was the query alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.pictures import image_grid, with_channels
from rdm.retrieval.database.pictures import framed_pictures
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.sampling.request import ALONE
from rdm.sampling.samples import Samples

GAP = 2  # pixels between pictures
RED = (220, 0, 0)


def sheet(samples: Samples, database: RetrievalDatabase, per_row: int | None = None) -> Tensor:
    """Returns the contact sheet, ``[3, H', W'] uint8``.

    Args:
        samples: the images.
        database: provides the pictures of the neighbours.
        per_row: number of images in a row of a grid without neighbours; None shows the neighbours.
    """
    images, (height, width), first = with_channels(samples.images, 3), samples.images.shape[2:], 0
    canvas = samples.request.canvas
    if per_row is None:
        per_row = 1
        columns = {} if canvas is None else {"picture": canvas.picture.expand(len(images), -1, -1, -1)}
        first, columns["sample"] = len(columns), images
        if samples.request.tokens not in ALONE:
            columns["neighbours"] = framed_pictures(database, samples.request.retrieved.rows, height, width)
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
