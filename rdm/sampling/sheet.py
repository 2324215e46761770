"""One picture of all samples, to be looked at: each beside the neighbours it looked at, or they alone in rows.

Before a sample stands the picture that it was made of, where there is one. Copies have a red frame. Neighbours that no
sample looked at, as its context was a query alone, are left out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.pictures import image_grid
from rdm.retrieval.database.pictures import pictures
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.sampling.samples import ALONE, Samples

GAP = 2  # pixels between pictures
RED = (220, 0, 0)


def sheet(samples: Samples, database: RetrievalDatabase, per_row: int | None = None) -> Tensor:
    """Returns the picture, ``[3, H', W'] uint8``.

    Args:
        samples: the images.
        database: where the pictures of their neighbours come from.
        per_row: show the images without their neighbours, so many in a row.
    """
    images, (height, width), first = samples.images, samples.images.shape[2:], 0
    if per_row is None:
        side, per_row = min(height, width), 1
        left, top = (width - side) // 2, (height - side) // 2
        columns = {} if samples.picture is None else {"picture": samples.picture.expand_as(images)}
        first, columns["sample"] = len(columns), images
        if samples.settings["tokens"] not in ALONE:
            shown = pictures(database, samples.retrieved.rows, side)
            columns["neighbours"] = F.pad(shown, (left, width - side - left, top, height - side - top), value=1.0)
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
    """Colours the gap around a picture of the page red; ``top`` and ``left`` are where the gap begins."""
    outside = page[:, top : top + height + 2 * GAP, left : left + width + 2 * GAP]
    inside = outside[:, GAP:-GAP, GAP:-GAP].clone()
    outside[:] = torch.tensor(RED, dtype=page.dtype)[:, None, None]
    outside[:, GAP:-GAP, GAP:-GAP] = inside
