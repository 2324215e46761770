"""Pictures that the model sees as neighbours although they are no rows of the database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ldm.data.decode import centre_crop
from ldm.pictures import from_uint8
from rdm.loading import Loaded
from rdm.retrieval.database.rows import RetrievalDatabase
from rdm.retrieval.queries import image_queries
from rdm.sampling.given import IN_MEMORY, GivenPicture, Picture, open_given


@dataclass(frozen=True, eq=False)
class ShownPicture:
    """A given picture, processed like the pictures of the database.

    Attributes:
        patch: the picture, cropped to its centre and scaled, ``[H, W, 3] uint8``.
        sha256: the hash of the file, or of the pixels if there is none.
        file: the path of the file; None if the picture was given open.
    """

    patch: np.ndarray
    sha256: str
    file: str | None = None

    @property
    def name(self) -> str:
        """The path of the file, or words in its place."""
        return self.file or IN_MEMORY

    def query(self, loaded: Loaded) -> Tensor:
        """Returns the raw embedding ``[1, D]`` of the picture. It is embedded alone, so that its bits are its own."""
        pixels = from_uint8(torch.from_numpy(self.patch).permute(2, 0, 1)[None].contiguous())
        return image_queries(loaded.retriever.embedder, pixels.to(loaded.model.device))


def shown_picture(loaded: Loaded, picture: Picture | GivenPicture, sha256: str | None = None) -> ShownPicture:
    """Returns a picture as the model sees it.

    Args:
        loaded: model and database.
        picture: the picture, or its file, which is read once.
        sha256: the hash that the file must have; None accepts any.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not a picture, or does not have the given hash.
    """
    opened = picture if isinstance(picture, GivenPicture) else open_given(picture, sha256, loaded.data.value_range)
    patch = np.array(centre_crop(opened.image, loaded.data.image_size))
    return ShownPicture(patch, opened.sha256, opened.file)


class ShownRows:
    """The pictures of database rows, and of given pictures, which have the numbers -1, -2 and so on.

    Args:
        database: the database.
        given: the given pictures.
    """

    def __init__(self, database: RetrievalDatabase, given: Sequence[ShownPicture] = ()) -> None:
        self.database, self.given = database, given

    def patches(self, rows: np.ndarray) -> list[np.ndarray]:
        """Returns the pictures of numbers of any shape, read flattened, each ``[H, W, 3] uint8``.

        Raises:
            FileNotFoundError: a source of the database has moved.
            ValueError: a source holds another picture than the database was built from.
        """
        numbers = rows.ravel()
        stored = iter(self.database.patches(numbers[numbers >= 0]))
        return [next(stored) if number >= 0 else self.given[-1 - number].patch for number in numbers.tolist()]
