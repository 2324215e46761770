"""Decodes an encoded picture to a tensor.

The values of a picture with 8 bits for each channel are 0 (black, -1) to 255 (white, 1), and those of an unsigned grey
picture with up to 16 bits are 0 to the largest value of its bits. Other grey pictures (signed integers, 32 bits,
floating point) do not say what is black and what is white: they need a `value_range`. A grey picture with more than 8
bits is not rounded to 8.
"""

from __future__ import annotations

import functools
import io
import struct
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ldm.pictures import from_uint8, with_channels

# The errors that Pillow raises for a file that is not a picture, is truncated, or is corrupt.
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    TypeError,
    NotImplementedError,
    struct.error,
)
_COMMON = ("JPEG", "PNG", "WEBP")
_REMEDY = "repair it, or give another"
MAX_PIXELS = 89_478_485  # Above this number, Pillow warns of a decompression bomb; here it is an error.
CHANNELS = (1, 3)
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of a TIFF file
_UNSIGNED, _WHITE_IS_ZERO = 1, 0
_UNSIGNED_16 = ("PNG", "PPM", "JPEG2000")  # formats whose grey with more than 8 bits is read as unsigned 16 bits

Size = int | Sequence[int]
"""The size of pictures: the side of a square in pixels, or `[height, width]`."""


class UnknownRangeError(ValueError):
    """A picture does not say which of its values are black and white, and no `value_range` says it."""


def sides(size: Size) -> tuple[int, int]:
    """Returns the height and the width that a size stands for, in pixels.

    Raises:
        ValueError: the size is neither a whole number of at least 1 nor two of them.
    """
    both = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, Sequence) else ()
    if len(both) != 2 or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in both):
        raise ValueError(f"got size={size!r}, expected a side of at least 1 pixel, or [height, width]")
    return int(both[0]), int(both[1])


def short_size(size: Size) -> int | list[int]:
    """Returns a size as configs and reports state it: the side of a square, or `[height, width]`."""
    height, width = sides(size)
    return height if height == width else [height, width]


def check_range(value_range: Sequence[float] | None) -> None:
    """Checks a `value_range`.

    Raises:
        ValueError: it is not two different finite numbers.
    """
    if value_range is None:
        return
    numbers = [value for value in value_range if isinstance(value, int | float) and np.isfinite(value)]
    if len(numbers) != 2 or len(value_range) != 2 or numbers[0] == numbers[1]:
        raise ValueError(f"got value_range={list(value_range)}, expected [black, white], two different numbers")


def decode_image(data: bytes, size: Size, channels: int = 3, value_range: Sequence[float] | None = None) -> Tensor:
    """Decodes a picture, scales it so that it covers `size` (antialiased bicubic), and crops the centre.

    Transparent pixels are composited over white. The pixels of a picture of this size are not resampled.

    Args:
        data: content of an image file (JPEG, PNG, WebP or another format that Pillow reads).
        size: size of the result.
        channels: 3 for red, green and blue; 1 for grey, which is the brightness (ITU-R BT.601) of a coloured picture.
        value_range: `[black, white]`, the values that become -1 and 1 in grey pictures with more than 8 bits; values
            beyond them are clamped.

    Returns:
        `[channels, height, width]` float32 in [-1, 1].

    Raises:
        ValueError: the bytes are not a readable picture, it has more than `MAX_PIXELS` pixels, or its range of values
            is unknown.
    """
    image = _open(data)
    if not _is_deep(image):
        flat = _to_rgb(image).convert("L" if channels == 1 else "RGB")
        pixels = np.array(centre_crop(flat, size)).reshape(*sides(size), channels)
        return from_uint8(torch.from_numpy(pixels).permute(2, 0, 1), torch.contiguous_format)
    grey = np.array(centre_crop(_scaled(image, value_range), size))
    return with_channels(torch.from_numpy(grey)[None].div_(127.5).sub_(1).clamp_(-1, 1), channels)


def open_picture(data: bytes | Image.Image, value_range: Sequence[float] | None = None) -> Image.Image:
    """Decodes a picture at its own size, in the orientation of its EXIF data, as 8-bit RGB over white.

    Args:
        data: content of an image file, or a picture that is open already.
        value_range: see :func:`decode_image`.

    Raises:
        ValueError: the bytes are not a readable picture, it has more than `MAX_PIXELS` pixels, or its range of values
            is unknown.
    """
    image = _open(data)
    if _is_deep(image):
        values = np.asarray(_scaled(image, value_range)).round()
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    return _to_rgb(image)


def _open(data: bytes | Image.Image) -> Image.Image:
    """Returns a picture in its own mode, turned as its EXIF data say."""
    try:
        opened = data if isinstance(data, Image.Image) else Image.open(io.BytesIO(data), formats=_formats())
        if opened.width * opened.height > MAX_PIXELS:
            raise ValueError(f"got {opened.width}x{opened.height} pixels, expected at most {MAX_PIXELS}")
        limits = _known_range(opened) if _is_deep(opened) else None
        image = ImageOps.exif_transpose(opened)  # a copy, also of a picture that needs no turn
    except UnidentifiedImageError as error:  # its text names an object in memory
        what = "it has no format that Pillow knows, or its beginning is damaged"
        raise ValueError(f"unreadable image: {what}; {_REMEDY}") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"got an image of more than {2 * MAX_PIXELS} pixels, expected at most {MAX_PIXELS}") from error
    except _UNREADABLE as error:
        raise ValueError(f"unreadable image: {error}; {_REMEDY}") from error
    image.info["value_range"] = limits
    return image


@functools.cache
def _formats() -> tuple[str, ...]:
    """Returns the formats that are read, common ones first: those of Pillow, without those that start a program.

    Pillow tries them in this order, and a picture of a late one takes twice as long to open.
    """
    Image.init()
    others = [name for name in Image.OPEN if name not in (*_COMMON, "EPS", "WMF")]
    return (*(name for name in _COMMON if name in Image.OPEN), *others)


def _is_deep(image: Image.Image) -> bool:
    """Returns whether a picture is grey with more than 8 bits."""
    return image.mode.startswith(("I", "F"))


def _known_range(image: Image.Image) -> tuple[float, float] | None:
    """Returns the values of black and white of a grey picture with more than 8 bits, if its file says them."""
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        unsigned = image.mode.startswith("I;16") or (image.mode == "I" and image.format in _UNSIGNED_16)
        return (0.0, 65535.0) if unsigned else None
    bits, form = tags.get(_BITS, (1,))[0], tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))[0]
    if form != _UNSIGNED or bits > 16:
        return None
    white = float(2**bits - 1)
    return (white, 0.0) if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else (0.0, white)


def _scaled(image: Image.Image, value_range: Sequence[float] | None) -> Image.Image:
    """Returns a grey picture with more than 8 bits as floating-point numbers, 0 for black and 255 for white."""
    values, limits = np.asarray(image).astype(np.float64), value_range or image.info["value_range"]
    if not np.isfinite(values).all():
        raise ValueError(f"unreadable image: it has values that are not finite; {_REMEDY}")
    if limits is None:
        low, high = values.min(), values.max()
        raise UnknownRangeError(
            f"a picture of {'floating-point numbers' if image.mode == 'F' else 'signed or 32-bit integers'} with "
            f"values from {low:g} to {high:g}, expected value_range in the config of the data set; set value_range to "
            f"[black, white], such as [{low:g}, {high:g}]"
        )
    black, white = limits
    return Image.fromarray((255 * (values - black) / (white - black)).astype(np.float32))


def _to_rgb(image: Image.Image) -> Image.Image:
    """Returns a picture of 8 bits as RGB, composited over white."""
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def centre_crop(image: Image.Image, size: Size) -> Image.Image:
    """Returns the largest centred part of a picture with the ratio of a size, scaled to that size in the same step."""
    height, width = sides(size)
    if image.size == (width, height):
        return image
    across, down = map(float, image.size)
    if across * height <= down * width:
        down = across * height / width
    else:
        across = down * width / height
    left, top = (image.width - across) / 2, (image.height - down) / 2
    return image.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, left + across, top + down))
