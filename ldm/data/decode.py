"""Decodes an encoded picture to a tensor."""

from __future__ import annotations

import io
import struct

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ldm.pictures import from_uint8

# The errors that Pillow raises for a file that is not a picture, is truncated, or is corrupt.
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    TypeError,
    struct.error,
    Image.DecompressionBombError,
)
MAX_PIXELS = 89_478_485  # Above this number, Pillow warns of a decompression bomb; here it is an error.


def decode_image(data: bytes, size: int) -> Tensor:
    """Decodes a picture, scales its shorter side to `size` (antialiased bicubic) and crops the centre square.

    Transparent pixels are composited over white. The pixels of a picture of `size` x `size` are not resampled.

    Args:
        data: content of an image file (JPEG, PNG, WebP or another format that Pillow reads).
        size: side of the result in pixels.

    Returns:
        `[3, size, size]` float32 in [-1, 1].

    Raises:
        ValueError: the bytes are not a readable picture, or it has more than `MAX_PIXELS` pixels.
    """
    pixels = torch.from_numpy(np.array(centre_square(open_picture(data), size))).permute(2, 0, 1)
    return from_uint8(pixels, torch.contiguous_format)


def open_picture(data: bytes | Image.Image) -> Image.Image:
    """Decodes a picture at its own size, in the orientation of its EXIF data, as 8-bit RGB over white.

    Args:
        data: content of an image file, or a picture that is open already.

    Raises:
        ValueError: the bytes are not a readable picture, or it has more than `MAX_PIXELS` pixels.
    """
    try:
        opened = data if isinstance(data, Image.Image) else Image.open(io.BytesIO(data))
        if opened.width * opened.height > MAX_PIXELS:
            raise ValueError(f"got {opened.width}x{opened.height} pixels, expected at most {MAX_PIXELS}")
        return _to_rgb(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError as error:  # its text names an object in memory
        raise ValueError("unreadable image: it has no format that Pillow knows, or its beginning is damaged") from error
    except _UNREADABLE as error:
        raise ValueError(f"unreadable image: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """Returns the picture as 8-bit RGB, composited over white."""
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257.0).round().astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def centre_square(image: Image.Image, size: int) -> Image.Image:
    """Returns the centre square of a picture at `size` x `size`, cropped and scaled in one step."""
    if image.size == (size, size):
        return image
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
