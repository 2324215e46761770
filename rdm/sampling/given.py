"""Pictures that a user gives: a file, or a picture that is open already."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ldm.data.decode import open_picture
from ldm.data.left_out import pages_left_out
from ldm.files import located
from rdm.retrieval.patches.identity import picture_hash

LOG = logging.getLogger(__name__)
Picture = str | Path | Image.Image
"""The path of a picture, or an open picture of Pillow."""
IN_MEMORY = "a picture in memory"


@dataclass(frozen=True, eq=False)
class GivenPicture:
    """A picture that was given.

    Attributes:
        source: the content of its file, or the open picture.
        image: the picture at its own size, 8-bit RGB over white.
        sha256: the hash of the file, or of the pixels if there is none.
        file: the path of the file; None if the picture was given open.
    """

    source: bytes | Image.Image
    image: Image.Image
    sha256: str
    file: str | None = None

    @property
    def name(self) -> str:
        """The path of the file, or words in its place."""
        return self.file or IN_MEMORY

    def is_opaque(self) -> bool:
        """Returns whether no pixel is transparent."""
        given = self.source if isinstance(self.source, Image.Image) else Image.open(io.BytesIO(self.source))
        return not given.has_transparency_data or int(np.asarray(given.convert("RGBA"))[..., 3].min()) == 255


def open_given(picture: Picture, sha256: str | None = None, value_range: Sequence[float] | None = None) -> GivenPicture:
    """Returns a picture from its file, which is read once, or an open one.

    Args:
        picture: the path or the picture.
        sha256: the hash that the file must have; None accepts any.
        value_range: the values of black and white in a grey picture with more than 8 bits, see
            :func:`ldm.data.decode.decode_image`.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not a picture or has another hash, or the argument is neither a path nor a picture.
    """
    if isinstance(picture, Image.Image):
        try:
            image = open_picture(picture, value_range)
        except ValueError as error:
            raise ValueError(f"{IN_MEMORY}: {error}") from error
        return GivenPicture(picture, image, picture_hash(np.array(image)))
    if not isinstance(picture, str | Path):
        raise ValueError(f"got {picture!r} as a picture, expected the path of a file or a PIL image")
    path = located(picture)
    if not path.is_file():
        raise FileNotFoundError(f"no picture at {path}; give the path of a file")
    data = path.read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256:
        raise ValueError(f"{path} has sha256 {found}, the image was made with {sha256}; give that one")
    try:
        given = GivenPicture(data, open_picture(data, value_range), found, str(picture))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if words := pages_left_out(data):
        LOG.warning("%s: %s", path, words)
    return given


def name_of(picture: Picture) -> str:
    """Returns the path of a picture, or words in its place."""
    return IN_MEMORY if isinstance(picture, Image.Image) else str(picture)
