"""Pictures that a user sends. They are measured before they are decoded, and only pictures are read."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from ldm.data.decode import open_picture
from rdm.web.limits import Limits

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""What is read. Formats whose decoders start programs or follow references, such as EPS, are not."""


def opened(path: str | Path, limits: Limits, folder: Path) -> Image.Image:
    """Returns an uploaded picture at its own size, as 8-bit RGB over white.

    Args:
        path: the file that the upload was stored in.
        limits: the largest number of bytes and of pixels.
        folder: the folder of uploads, which the file must lie in.

    Raises:
        ValueError: the file lies elsewhere, is too large, or is not a picture of one of the :data:`FORMATS`.
    """
    return decoded(content(path, limits, folder), limits)


def content(path: str | Path, limits: Limits, folder: Path) -> bytes:
    """Returns the bytes of an uploaded file, for the arguments of :func:`opened`.

    Raises:
        ValueError: the file lies elsewhere or is too large.
    """
    file = Path(path).resolve()
    if not file.is_relative_to(folder.resolve()) or not file.is_file():
        raise ValueError("got a path that is no upload of this page, expected a picture; upload it again")
    limits.check(upload_bytes=file.stat().st_size)
    return file.read_bytes()


def decoded(data: bytes, limits: Limits) -> Image.Image:
    """Returns the picture in some bytes at its own size, as 8-bit RGB over white.

    Raises:
        ValueError: there are too many bytes or pixels, or they are not a picture of one of the :data:`FORMATS`.
    """
    limits.check(upload_bytes=len(data))
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as header:  # reads no pixel
            limits.check(pixels=header.width * header.height)
    except Image.DecompressionBombError as error:
        raise ValueError(f"got a picture of too many pixels, expected at most {limits.pixels}; send less") from error
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"got a file that is no picture, expected one of {', '.join(FORMATS)}; upload one") from error
    return open_picture(data)


def received(given: Any, limits: Limits, folder: Path) -> Image.Image:
    """Returns a picture that a program sent: an upload, which is removed, or the content of a file in Base64.

    Args:
        given: what ``handle_file`` of ``gradio_client`` becomes on its way, or a text; see :func:`from_data_url`.
        limits: see :func:`opened`.
        folder: see there.

    Raises:
        ValueError: it is neither, or see :func:`opened`.
    """
    return decoded(sent(given, limits, folder), limits)


def sent(given: Any, limits: Limits, folder: Path) -> bytes:
    """Returns the content of a file that a program sent, for the arguments and errors of :func:`received`."""
    if not isinstance(given, dict):
        return from_data_url(given)
    data = content(str(given.get("path")), limits, folder)
    Path(given["path"]).unlink(missing_ok=True)
    return data


def from_data_url(text: str) -> bytes:
    """Returns the content of a data URL in Base64, or of a text in Base64 alone.

    Raises:
        ValueError: it is no such text.
    """
    if not isinstance(text, str):
        raise ValueError(f"got {type(text).__name__} as a picture, expected a text in Base64")
    try:
        return base64.b64decode(text.rpartition("base64,")[2], validate=True)
    except ValueError as error:
        raise ValueError(
            "got a text that is not in Base64, expected a picture in it; send the content of a file"
        ) from error
