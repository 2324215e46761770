"""The policy that says which parts of a picture become database rows, and the function that cuts such a part out.

A policy is the mapping ``patches`` of a database's config::

    {policy: whole}                                          the picture itself
    {policy: random, count: 2, min_side: 256, max_side: 256, seed: 0}    random squares of each picture
    {policy: grid, side: 256, stride: 256}                   squares that cover the picture
    {policy: boxes, file: boxes.csv, min_side: 64}           squares around annotated boxes

Every policy accepts ``min_picture``: a picture whose shorter side has fewer pixels gives no rows. A box is in pixels of
the picture at its original size. The embedder sees the patch of the box: its centre, as much as has
the ratio of the size of the source, scaled to that size.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ldm.config import check_keys
from ldm.data.decode import Size, centre_crop
from rdm.retrieval.patches.annotations import Annotations

# The settings of each policy and their defaults. None has no default and must be given; 0 as max_side or stride means
# no limit and the side.
_SETTINGS: dict[str, dict[str, Any]] = {
    "whole": {},
    "random": {"count": 1, "min_side": None, "max_side": 0, "seed": 0},
    "grid": {"side": None, "stride": 0},
    "boxes": {"file": None, "min_side": 1},
}


class Box(NamedTuple):
    """A part of a picture, in pixels: columns ``x0 .. x1 - 1`` of rows ``y0 .. y1 - 1``."""

    x0: int
    y0: int
    x1: int
    y1: int


class Patches:
    """A policy, which gives the boxes of any picture.

    Args:
        config: ``policy`` and its settings; None for whole pictures.

    Raises:
        ValueError: the policy or a setting is unknown, or a setting is out of range.
        FileNotFoundError: the file of annotations is missing.
    """

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        self.config = complete_policy(config or {"policy": "whole"})
        self._annotations = Annotations(self.config["file"]) if self.config["policy"] == "boxes" else None

    def of(self, image_id: str, width: int, height: int) -> list[tuple[Box, str]]:
        """Returns the boxes of a picture of this size, each with the class that an annotation names or ``""``.

        The result depends only on the policy and the arguments, not on other pictures.
        """
        if min(width, height) < self.config["min_picture"]:
            return []
        if self._annotations is not None:
            labelled = [
                (_square_around(x0, y0, x1, y1, width, height), name)
                for x0, y0, x1, y1, name in self._annotations.of(image_id, width, height)
                if min(x1 - x0, y1 - y0) >= self.config["min_side"]
            ]
        else:
            boxes = {"whole": _whole, "random": _random, "grid": _grid}[self.config["policy"]]
            labelled = [(box, "") for box in boxes(self.config, image_id, width, height)]
        return list(dict.fromkeys(labelled))  # in a picture of the smallest size all random squares are equal


def complete_policy(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a policy with all its settings, including defaults.

    Raises:
        ValueError: the policy or a setting is unknown, or a setting is out of range.
    """
    name = config.get("policy")
    if name not in _SETTINGS:
        raise ValueError(f"patches: got policy {name!r}, expected one of {', '.join(_SETTINGS)}")
    settings = {**_SETTINGS[name], "min_picture": 1}
    check_keys(dict(config), ["policy", *settings], f"patches: policy {name}")
    known = {"policy": name, **{key: config.get(key, value) for key, value in settings.items()}}
    for key, value in known.items():
        if value is None:
            raise ValueError(f"patches: policy {name} has no '{key}', got {', '.join(config)}; add '{key}'")
        least = 0 if key in ("seed", "max_side", "stride") else 1
        if key not in ("policy", "file") and (not isinstance(value, int) or value < least):
            raise ValueError(f"patches: got {key}={value!r}, expected a whole number of at least {least}")
    if name == "random" and 0 < known["max_side"] < known["min_side"]:
        raise ValueError(f"patches: got max_side={known['max_side']}, expected at least min_side={known['min_side']}")
    return known


def cut(picture: Image.Image, box: Box | None, size: Size) -> np.ndarray:
    """Returns the patch of a box, which is its centre, scaled to ``[H, W, 3] uint8``.

    Args:
        picture: the picture.
        box: the box; None for the whole picture.
        size: H and W in pixels, or the side of a square.

    Raises:
        ValueError: the box is not within the picture.
    """
    if box is not None and box != (0, 0, picture.width, picture.height):
        if not (0 <= box.x0 < box.x1 <= picture.width and 0 <= box.y0 < box.y1 <= picture.height):
            raise ValueError(f"got the box {tuple(box)}, expected one within {picture.width}x{picture.height} pixels")
        picture = picture.crop(box)
    return np.array(centre_crop(picture, size))


def _whole(config: Mapping[str, Any], image_id: str, width: int, height: int) -> list[Box]:
    del config, image_id
    return [Box(0, 0, width, height)]


def _random(config: Mapping[str, Any], image_id: str, width: int, height: int) -> list[Box]:
    """Squares of uniformly random sides and places, drawn with a generator that depends on the seed and the id."""
    most = min(width, height, config["max_side"] or width)
    if most < config["min_side"]:
        return []
    digest = hashlib.sha256(f"{config['seed']} {image_id}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:16], "little"))
    boxes = []
    for side in generator.integers(config["min_side"], most, config["count"], endpoint=True).tolist():
        x, y = generator.integers(0, [width - side, height - side], endpoint=True).tolist()
        boxes.append(Box(x, y, x + side, y + side))
    return boxes


def _grid(config: Mapping[str, Any], image_id: str, width: int, height: int) -> list[Box]:
    """Evenly spaced squares, at most a stride apart, of which the last ones end at the picture's edges."""
    del image_id
    side, stride = config["side"], config["stride"] or config["side"]
    if min(width, height) < side:
        return []
    rows, columns = (
        np.linspace(0, length - side, 1 + math.ceil((length - side) / stride)).round().astype(int).tolist()
        for length in (height, width)
    )
    return [Box(x, y, x + side, y + side) for y in rows for x in columns]


def _square_around(x0: float, y0: float, x1: float, y1: float, width: int, height: int) -> Box:
    """The square around a box with the longer side of the box, moved into the picture and shrunk if it does not fit."""
    side = min(max(1, round(max(x1 - x0, y1 - y0))), width, height)
    left = min(max(0, round((x0 + x1 - side) / 2)), width - side)
    top = min(max(0, round((y0 + y1 - side) / 2)), height - side)
    return Box(left, top, left + side, top + side)
