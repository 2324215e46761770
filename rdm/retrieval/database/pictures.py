"""Pictures of database rows, for display."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.pictures import from_uint8
from rdm.retrieval.database.rows import RetrievalDatabase


def pictures(database: RetrievalDatabase, rows: np.ndarray, size: int) -> Tensor:
    """Cuts the pictures of rows out of the source and scales them; ``[*rows.shape, 3, S, S]`` in [-1, 1].

    Args:
        database: the database, whose card describes the source.
        rows: integers of any shape.
        size: S, side in pixels.
    """
    scaled = []
    for patch in database.patches(rows):
        image = from_uint8(torch.from_numpy(patch).permute(2, 0, 1)[None])
        if image.shape[2:] != (size, size):
            image = F.interpolate(image, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)
        scaled.append(image[0])
    return torch.stack(scaled).view(*rows.shape, 3, size, size)
