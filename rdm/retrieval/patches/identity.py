"""What tells pictures and lists of pictures apart: ids and hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor

from ldm.pictures import to_uint8


def ids_hash(ids: Iterable[str]) -> str:
    """Returns the SHA-256 of image ids in their order."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()


def images_hash(images: Any) -> str:
    """Returns the SHA-256 of the ids of a data set, without decoding its pictures."""
    return ids_hash(image_id(images, number) for number in range(len(images)))


def picture_hash(pixels: np.ndarray) -> str:
    """Returns the SHA-256 of a picture ``[H, W, 3] uint8``: of its pixels, not of the file that held it."""
    return hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def to_pixels(image: Tensor) -> np.ndarray:
    """Returns an image ``[3, H, W]`` in [-1, 1] as pixels ``[H, W, 3] uint8``."""
    return to_uint8(image).permute(1, 2, 0).contiguous().numpy()


def image_id(images: Any, index: int) -> str:
    """Returns the id of a picture of a ``ldm.data`` data set without decoding it, ``""`` if unreadable."""
    try:
        return images.metadata(index)["id"]
    except ValueError:
        return ""
