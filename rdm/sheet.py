"""One picture of all samples, to be looked at: each beside the neighbours it looked at, copies in a red frame."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.callbacks import image_grid
from rdm.retrieval.database import RetrievalDatabase
from rdm.retrieval.pictures import pictures
from rdm.sample import Samples

GAP = 2  # pixels between pictures
RED = (220, 0, 0)


def sheet(samples: Samples, database: RetrievalDatabase) -> Tensor:
    """Returns the picture, ``[3, H', W'] uint8``.

    Args:
        samples: the images.
        database: where the pictures of their neighbours come from.
    """
    height, width = samples.images.shape[2:]
    shown = pictures(database, samples.retrieved.rows, width)
    page = image_grid({"sample": samples.images, "neighbours": shown}, GAP)
    for i, likeness in enumerate(samples.copies or []):
        if likeness.is_copy:
            frame(page, i * (height + GAP), 0, height, width)
    return page


def frame(page: Tensor, top: int, left: int, height: int, width: int) -> None:
    """Colours the gap around a picture of the page red; ``top`` and ``left`` are where the gap begins."""
    outside = page[:, top : top + height + 2 * GAP, left : left + width + 2 * GAP]
    inside = outside[:, GAP:-GAP, GAP:-GAP].clone()
    outside[:] = torch.tensor(RED, dtype=page.dtype)[:, None, None]
    outside[:, GAP:-GAP, GAP:-GAP] = inside
