"""Ids and hashes that identify pictures and lists of pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor

from ldm.data.images import ImageDataset
from ldm.pictures import to_uint8, with_channels


def ids_hash(ids: Iterable[str]) -> str:
    """Returns the SHA-256 of a list of image ids."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()


def images_hash(images: Any) -> str:
    """Returns the SHA-256 of the image ids of a data set without decoding its pictures."""
    return ids_hash(image_id(images, number) for number in range(len(images)))


def picture_hash(pixels: np.ndarray) -> str:
    """Returns the SHA-256 of the pixels ``[H, W, 3] uint8`` of a picture, which does not depend on its file format."""
    return hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def to_pixels(image: Tensor) -> np.ndarray:
    """Returns an image ``[3, H, W]`` or ``[1, H, W]`` in [-1, 1] as pixels ``[H, W, 3] uint8``."""
    return to_uint8(with_channels(image, 3)).permute(1, 2, 0).contiguous().numpy()


def image_id(images: Any, index: int) -> str:
    """Returns the id of a picture of an ``ldm.data`` data set without decoding it; ``""`` if it is unreadable."""
    try:
        return images.id_of(index) if isinstance(images, ImageDataset) else images.metadata(index)["id"]
    except ValueError:
        return ""
