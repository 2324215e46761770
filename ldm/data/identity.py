"""Ids of pictures, and hashes of lists of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from ldm.data.images import ImageDataset


def ids_hash(ids: Iterable[str]) -> str:
    """Returns the SHA-256 of a list of image ids."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()


def images_hash(images: Any) -> str:
    """Returns the SHA-256 of the image ids of a data set without decoding its pictures."""
    return ids_hash(image_id(images, number) for number in range(len(images)))


def image_id(images: Any, index: int) -> str:
    """Returns the id of a picture of an ``ldm.data`` data set without decoding it; ``""`` if it is unreadable."""
    try:
        return images.id_of(index) if isinstance(images, ImageDataset) else images.metadata(index)["id"]
    except ValueError:
        return ""
