"""A split that depends only on each image's id, so that it is stable when images are added or reordered."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from torch.utils.data import Dataset

from ldm.util import instantiate_from_config


class HashSplit(Dataset[dict[str, Any]]):
    """A part of a data set. A picture is held out if the SHA-256 of its id is divisible by ``every``.

    Args:
        images: config of a data set with ``metadata(index)``.
        held_out: whether this is the held-out part.
        every: about one in ``every`` pictures is held out.
    """

    def __init__(self, images: Mapping[str, Any], held_out: bool, every: int = 10) -> None:
        if every < 2:
            raise ValueError(f"every: got {every}, expected at least 2")
        self.images = instantiate_from_config(images)
        self.size, self.max_broken = self.images.size, self.images.max_broken
        self.channels, self.value_range = self.images.channels, self.images.value_range
        self.rows = [
            i for i in range(len(self.images)) if is_held_out(self.images.metadata(i)["id"], every) == held_out
        ]

    def __len__(self) -> int:
        """Returns the number of pictures in this part."""
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns the item of the underlying data set."""
        return self.images[self.rows[index]]

    def metadata(self, index: int) -> dict[str, str]:
        """Returns the item without its picture."""
        return self.images.metadata(self.rows[index])

    def uri(self, index: int) -> str:
        """Returns the origin of the picture."""
        return self.images.uri(self.rows[index])

    def read(self, index: int) -> bytes:
        """Returns the encoded picture."""
        return self.images.read(self.rows[index])


def is_held_out(image_id: str, every: int) -> bool:
    """Returns whether the picture with this id is held out."""
    return int(hashlib.sha256(image_id.encode()).hexdigest(), 16) % every == 0
