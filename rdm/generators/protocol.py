"""What a generator is: it completes the settings of a request, draws its images, and says what it is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from rdm.sampling.generate import Draw
from rdm.sampling.request import Request
from rdm.sampling.settings import Settings
from rdm.sampling.watching import Progress

Drawing = Callable[[Request, Progress | None], AbstractContextManager[Draw]]
"""Takes a part of a request; its images can be drawn within the context that it returns."""
Source = tuple[str, str, str]
"""What a record names, such as ``checkpoint PATH``; its fingerprint now; and its fingerprint in the record."""


class Generator(Protocol):
    """Makes the images of a request.

    A request has the prompts, the neighbours as vectors and as the rows of pictures, and the seeds.
    """

    def complete(self, request: Request, settings: Settings) -> Settings:
        """Returns the settings with the usual values of this generator where they are None.

        Raises:
            FileNotFoundError: a file that the settings name does not exist.
            ValueError: the generator, the request and the settings do not fit.
        """

    def drawing(self, settings: Settings) -> Drawing:
        """Loads what completed settings name, and returns the function that draws with them.

        Raises:
            ValueError: what the settings name does not fit.
        """

    def about(self, settings: Settings) -> dict[str, Any]:
        """Returns the entries of a record that name the generator and everything that it is made of."""

    def sources(self, record: Mapping[str, Any]) -> list[Source]:
        """Returns what a record of this kind of generator names, with fingerprints now and then."""
