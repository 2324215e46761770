"""Pictures as tensors: 8-bit colours to and from numbers in [-1, 1], grids of pictures, and PNG files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ldm.files import atomic_path


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


def image_grid(columns: Mapping[str, Tensor], gap: int = 2) -> Tensor:
    """Returns one picture ``[3, H', W'] uint8`` with a row for each image and a column for each entry.

    Args:
        columns: images ``[N, 3, H, W]``, or several a row ``[N, M, 3, H, W]``, in [-1, 1].
        gap: white pixels between pictures.
    """
    stacks = [value[:, None] if value.ndim == 4 else value for value in columns.values()]
    rows = min(len(stack) for stack in stacks)
    (c, h, w), m = stacks[0].shape[2:], sum(stack.shape[1] for stack in stacks)
    grid = torch.full((c, rows * (h + gap) + gap, m * (w + gap) + gap), 255, dtype=torch.uint8)
    for i in range(rows):
        for j, tile in enumerate(tile for stack in stacks for tile in stack[i]):
            top, left = gap + i * (h + gap), gap + j * (w + gap)
            grid[:, top : top + h, left : left + w] = to_uint8(tile.detach().float().cpu())
    return grid


def save_png(image: Tensor, path: str | Path, texts: Mapping[str, str] | None = None) -> None:
    """Writes a picture as a PNG file; an interrupted call leaves no file, or the old one.

    Args:
        image: ``[3, H, W] uint8``.
        path: the file.
        texts: metadata of the file, by keyword.
    """
    info = PngInfo()
    for keyword, text in (texts or {}).items():
        info.add_itxt(keyword, text)
    with atomic_path(path) as temporary:
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(temporary, format="png", pnginfo=info)
