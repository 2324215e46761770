"""The data set that rows of a database were cut from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ldm.data.decode import open_picture
from ldm.data.identity import image_id
from ldm.util import instantiate_from_config
from rdm.retrieval.patches.identity import picture_hash
from rdm.retrieval.patches.policy import Box, cut


class Source:
    """A data set, which is opened when its first picture is read.

    Args:
        entry: ``source`` (``{"target", "params"}``) and ``patches`` from a database's card.
        database: folder of the database, for messages.
        images: the open data set; None opens the one that ``entry`` describes.
    """

    def __init__(self, entry: Mapping[str, Any], database: Path, images: Any = None) -> None:
        self._config = entry["source"]
        self._whole = entry["patches"]["policy"] == "whole"
        self._imported = entry["patches"]["policy"] == "imported"  # of such rows only the number is certain
        self._database, self._images = database, images
        self._numbers: dict[str, int] | None = None

    def patch(self, row: Mapping[str, Any]) -> np.ndarray:
        """Returns the patch of a row, ``[H, W, 3] uint8``, as it was embedded.

        Args:
            row: the metadata of the row.

        Raises:
            ValueError: no source is recorded, or it holds another picture than the one that the row was made from.
            FileNotFoundError: the source has moved.
        """
        if self._images is None:
            if not self._config:
                raise ValueError(
                    f"database {self._database} records no source of image '{row['image_id']}'; give its data set"
                )
            self._images = instantiate_from_config(self._config)
        sides = Box(row["x0"], row["y0"], row["x1"], row["y1"])
        box = sides if any(sides) and not self._whole else None
        try:
            picture = open_picture(self._images.read(self._number(row)), self._images.value_range)
            pixels = cut(picture, box, self._images.size)
        except (OSError, LookupError, ValueError) as error:
            raise ValueError(f"{_name(row)} cannot be cut out again ({error}); restore the source") from error
        if row["sha256"] and picture_hash(pixels) != row["sha256"]:
            raise ValueError(
                f"{_name(row)} is not the picture that database {self._database} was built from; "
                "restore the source or rebuild the database"
            )
        return pixels

    def _number(self, row: Mapping[str, Any]) -> int:
        """Returns the number of a row's picture in the source; if pictures came or went since, the id is looked up."""
        item, name = row["item"], row["image_id"]
        if 0 <= item < len(self._images) and (self._imported or image_id(self._images, item) == name):
            return item
        if self._numbers is None:
            self._numbers = {image_id(self._images, number): number for number in range(len(self._images))}
        if name not in self._numbers:
            raise LookupError("the source has no picture of that id")
        return self._numbers[name]


def _name(row: Mapping[str, Any]) -> str:
    return f"image '{row['image_id']}' ({row['uri']})"
