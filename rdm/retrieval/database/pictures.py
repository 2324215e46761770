"""Pictures of database rows, for display and as the input of networks."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.data.decode import Size, sides
from ldm.pictures import from_uint8
from rdm.retrieval.embedder import Embedder, embed_tokens

_BATCH = 16


class Patches(Protocol):
    """What has a picture for the number of a row, as :class:`rdm.retrieval.database.rows.RetrievalDatabase` has."""

    def patches(self, rows: Any) -> list[np.ndarray]:
        """Returns the pictures of some rows, each ``[H, W, 3] uint8``."""


def pictures(database: Patches, rows: np.ndarray, size: Size) -> Tensor:
    """Cuts the pictures of rows out of the source and scales them; ``[*rows.shape, 3, H, W]`` in [-1, 1].

    Pictures whose sides have another ratio are stretched.

    Args:
        database: the database, whose card describes the source.
        rows: integers of any shape.
        size: H and W in pixels, or the side of squares.
    """
    height, width = sides(size)
    scaled = [_scaled(patch, height, width) for patch in database.patches(rows)]
    return torch.stack(scaled).view(*rows.shape, 3, height, width)


def framed_pictures(database: Patches, rows: np.ndarray, height: int, width: int) -> Tensor:
    """Cuts the pictures of rows out of the source for display; ``[*rows.shape, 3, H, W]`` in [-1, 1].

    A picture is scaled until it fits, with the ratio of its sides, and what is left at its sides is white.

    Args:
        database: the database, whose card describes the source.
        rows: integers of any shape.
        height: H in pixels.
        width: W in pixels.
    """
    framed = []
    for patch in database.patches(rows):
        down, across = patch.shape[:2]
        if across * height <= down * width:
            across, down = max(1, round(across * height / down)), height
        else:
            across, down = width, max(1, round(down * width / across))
        top, left = (height - down) // 2, (width - across) // 2
        around = (left, width - across - left, top, height - down - top)
        framed.append(F.pad(_scaled(patch, down, across), around, value=1.0))
    return torch.stack(framed).view(*rows.shape, 3, height, width)


def _scaled(patch: np.ndarray, height: int, width: int) -> Tensor:
    """Returns a patch ``[h, w, 3] uint8`` as an image ``[3, H, W]`` in [-1, 1]."""
    image = from_uint8(torch.from_numpy(patch).permute(2, 0, 1)[None])
    if image.shape[2:] != (height, width):
        image = F.interpolate(image, (height, width), mode="bicubic", antialias=True).clamp(-1, 1)
    return image[0]


def grid_tokens(database: Patches, rows: np.ndarray, embedder: Embedder, grid: int) -> Tensor:
    """Returns the tokens of rows' own pictures, ``[*rows.shape, g * g, D'] float32`` on the device of the embedder.

    The pictures are cut out of the source of the database at the size at which they were embedded.

    Args:
        database: the database.
        rows: integers of any shape.
        embedder: the embedder that made the database.
        grid: side g of the grid of tokens.

    Raises:
        FileNotFoundError: the source of the database has moved.
        ValueError: the source holds other pictures than the database was built from, or none is recorded; or the
            embedder has no tokens for this grid.
    """
    unique, tokens = np.unique(rows), []
    for start in range(0, len(unique), _BATCH):
        some = unique[start : start + _BATCH]
        try:
            patches = database.patches(some)
        except (OSError, ValueError) as error:
            remedy = "a model with a grid of tokens needs the pictures of the neighbours"
            raise type(error)(f"{error}; {remedy}") from error
        images = [from_uint8(torch.from_numpy(patch).permute(2, 0, 1)) for patch in patches]
        tokens.append(embed_tokens(embedder, images, [f"row {row}" for row in some], grid))
    return torch.cat(tokens)[torch.from_numpy(np.searchsorted(unique, rows))]
