"""What one request to the page may ask for. A request beyond a limit is refused with one sentence."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any


def limit(default: int, what: str) -> Any:
    """Returns a field of :class:`Limits`: its default, and the words for what it limits."""
    return field(default=default, metadata={"what": what})


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of a page. Each attribute is an option of ``scripts/web.py``.

    Raises:
        ValueError: a limit is not a whole number of at least 1.
    """

    prompt_characters: int = limit(300, "characters in a prompt")
    images: int = limit(16, "images in a request")
    neighbours: int = limit(32, "neighbours of an image")
    steps: int = limit(250, "denoising steps of an image")
    side: int = limit(256, "pixels at a side of an image")
    upload_bytes: int = limit(10 * 2**20, "bytes in an upload")
    pixels: int = limit(16_000_000, "pixels in an uploaded picture")
    rows: int = limit(200, "rows in a search")
    additions: int = limit(16, "pictures at once")
    queue: int = limit(16, "requests that wait")

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"got {name}={value!r}, expected a whole number of at least 1")

    def check(self, **given: int | None) -> None:
        """Checks numbers against the limits of the same names; None is within every limit.

        Raises:
            ValueError: a number is above its limit.
        """
        for name, value in given.items():
            if value is not None and value > getattr(self, name):
                raise ValueError(f"got {value} {WHAT[name]}, expected at most {getattr(self, name)}; ask for fewer")


WHAT = {each.name: each.metadata["what"] for each in fields(Limits)}
"""What each limit is a number of."""
