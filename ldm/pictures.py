"""Pictures as tensors: 8-bit colours to and from numbers in [-1, 1], grids of pictures, and PNG files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ldm.files import atomic_path

GREY = (0.299, 0.587, 0.114)  # weights of red, green and blue in the brightness of a pixel (ITU-R BT.601)


def to_uint8(images: Tensor) -> Tensor:
    """Returns images of any shape in [-1, 1] as ``uint8``: clamped, and rounded to the nearest colour."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def from_uint8(pixels: Tensor, memory_format: torch.memory_format = torch.preserve_format) -> Tensor:
    """Returns ``uint8`` pixels of any shape as ``float32`` in [-1, 1], of which :func:`to_uint8` is the inverse.

    Args:
        pixels: colours from 0 to 255.
        memory_format: the result's; by default that of the pixels.
    """
    return pixels.to(torch.float32, memory_format=memory_format).div_(127.5).sub_(1.0)


def with_channels(images: Tensor, channels: int) -> Tensor:
    """Returns images ``[..., C, H, W]`` with other channels, 1 (grey) or 3 (red, green and blue); equal ones unchanged.

    A grey image has equal red, green and blue; the grey of a coloured one is its brightness (ITU-R BT.601).
    """
    if images.shape[-3] == channels:
        return images
    if channels == 1:
        return (images * images.new_tensor(GREY).view(3, 1, 1)).sum(-3, keepdim=True)
    return images.expand(*images.shape[:-3], channels, *images.shape[-2:])


def image_grid(columns: Mapping[str, Tensor], gap: int = 2) -> Tensor:
    """Returns one picture ``[C, H', W'] uint8`` with a row for each image and a column for each entry.

    Args:
        columns: images ``[N, C, H, W]``, or several a row ``[N, M, C, H, W]``, in [-1, 1]. If some have 3 channels and
            others 1, the grid has 3. Of other numbers of channels, the mean is shown.
        gap: white pixels between pictures.
    """
    stacks = [value[:, None] if value.ndim == 4 else value for value in columns.values()]
    stacks = [stack if stack.shape[2] in (1, 3) else stack.mean(2, keepdim=True) for stack in stacks]
    stacks = [with_channels(stack, max(each.shape[2] for each in stacks)) for stack in stacks]
    rows = min(len(stack) for stack in stacks)
    tiles = torch.cat([to_uint8(stack[:rows].detach().float().cpu()) for stack in stacks], dim=1)
    tiles = F.pad(tiles, (gap, 0, gap, 0), value=255)
    (n, m, c, h, w) = tiles.shape
    return F.pad(tiles.permute(2, 0, 3, 1, 4).reshape(c, n * h, m * w), (0, gap, 0, gap), value=255)


def save_png(image: Tensor, path: str | Path, texts: Mapping[str, str] | None = None) -> None:
    """Writes a picture as a PNG file; an interrupted call leaves no file, or the old one.

    Args:
        image: ``[C, H, W] uint8`` with 3 channels or 1.
        path: the file.
        texts: metadata of the file, by keyword.
    """
    info = PngInfo()
    for keyword, text in (texts or {}).items():
        info.add_itxt(keyword, text)
    with atomic_path(path) as temporary:
        as_picture(image).save(temporary, format="png", pnginfo=info)


def as_picture(image: Tensor) -> Image.Image:
    """Returns pixels ``[C, H, W] uint8`` with 3 channels or 1 as a picture of Pillow."""
    return Image.fromarray((image[0] if len(image) == 1 else image.permute(1, 2, 0)).numpy())
