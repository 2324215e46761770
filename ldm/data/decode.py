"""One encoded picture to one tensor."""

from __future__ import annotations

import io
import struct

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ldm.pictures import from_uint8

# What Pillow raises for a file that is not a picture, ends early, or is corrupt inside.
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    TypeError,
    struct.error,
    Image.DecompressionBombError,
)
MAX_PIXELS = 89_478_485  # Pillow's own warning threshold for image bombs; here it is an error.


def decode_image(data: bytes, size: int) -> Tensor:
    """Decode a picture, scale its shorter side to `size` (antialiased bicubic) and crop the centre square.

    Transparent pixels are laid over white. A picture that is `size` x `size` already keeps its pixels as they are.

    Args:
        data: an encoded file (JPEG, PNG, WebP or anything else that Pillow reads).
        size: side of the result in pixels.

    Returns:
        `[3, size, size]` float32 in [-1, 1].

    Raises:
        ValueError: the bytes are no readable picture, or it has more than `MAX_PIXELS` pixels.
    """
    pixels = torch.from_numpy(np.array(centre_square(open_picture(data), size))).permute(2, 0, 1)
    return from_uint8(pixels, torch.contiguous_format)


def open_picture(data: bytes) -> Image.Image:
    """Decode a picture at its own size, upright, as 8-bit RGB on white.

    Raises:
        ValueError: the bytes are no readable picture, or it has more than `MAX_PIXELS` pixels.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise ValueError(f"got {opened.width}x{opened.height} pixels, expected at most {MAX_PIXELS}")
            return _to_rgb(ImageOps.exif_transpose(opened))
    except _UNREADABLE as error:
        raise ValueError(f"unreadable image: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB on white."""
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257.0).round().astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def centre_square(image: Image.Image, size: int) -> Image.Image:
    """The centre square of a picture at `size` x `size`, cut and scaled in one step."""
    if image.size == (size, size):
        return image
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
