"""Checks of the arguments that CompVis' data sets have."""

from __future__ import annotations

import logging
from typing import Any

LOG = logging.getLogger(__name__)


def check_size(name: str, size: int | None) -> int:
    """Returns the side of the pictures of a data set.

    Raises:
        ValueError: there is none: pictures of different sizes make no batch.
    """
    if not size:
        raise ValueError(f"{name}: got size={size}, expected the side of the pictures in pixels; set size")
    return size


def say_what_is_left_out(name: str, **options: Any) -> None:
    """Logs which options of CompVis' data sets were given and have no effect here, because pictures are not changed."""
    if given := [f"{option}={value}" for option, value in options.items() if value]:
        LOG.warning(
            "%s: %s has no effect; pictures are scaled and their centre is cut out, without random changes",
            name,
            ", ".join(given),
        )
