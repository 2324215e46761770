"""The memory that a pipeline of diffusers needs, computed from the sizes of its weights and of the images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch

from ldm.checkpoint import read_contents
from ldm.util import bytes_of
from rdm.retrieval.builder.forecast import available_memory

# Numbers for each pixel while a picture is decoded, per channel of the second block of the decoder: the input, the norm
# and the output of a convolution at full size, and its workspace.
DECODER = 4
LAYER = 0.02  # share of the largest network that is on the GPU at a time with offload=sequential


def parameters_of(folder: Path) -> dict[str, int]:
    """Returns the number of weights of each network in the folder of a pipeline, by the name of its folder."""
    found = {}
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        files = sorted(part.glob("*.safetensors"))
        chosen = [file for file in files if ".fp16." not in file.name] or files
        if chosen:
            found[part.name] = sum(_count(file) for file in chosen)
        elif binary := sorted(part.glob("*.bin")):
            found[part.name] = sum(file.stat().st_size for file in binary) // 4
    return found


def _count(file: Path) -> int:
    return sum(tensor.numel() for tensor in read_contents(file).tensors.values())


def forecast(
    parameters: Mapping[str, int], size: tuple[int, int], *, channels: int, batch: int, itemsize: int, offload: str
) -> int:
    """Returns the bytes of memory that drawing needs on the device that draws. It is an estimate.

    Args:
        parameters: the number of weights of each network.
        size: height and width in pixels of what is decoded at a time: an image, or a tile.
        channels: channels of the second block of the decoder.
        batch: number of images that are drawn together.
        itemsize: bytes of a number.
        offload: see :class:`rdm.sampling.settings.Settings`.
    """
    weights = {
        "none": sum(parameters.values()),
        "model": max(parameters.values(), default=0),
        "sequential": round(LAYER * max(parameters.values(), default=0)),
    }[offload]
    return itemsize * (weights + DECODER * channels * batch * size[0] * size[1])


def check_memory(name: str, need: int, free: int | None, remedy: str) -> None:
    """Checks that a pipeline fits into memory.

    Args:
        name: the pipeline, for the message.
        need: bytes that it needs, see :func:`forecast`.
        free: bytes that are free; None if that is unknown.
        remedy: what needs less.

    Raises:
        ValueError: it needs more than is free.
    """
    if free is not None and need > free:
        raise ValueError(
            f"pipeline {name} needs about {need / 1e9:.1f} GB of memory (computed), {free / 1e9:.1f} GB are free; "
            f"{remedy}"
        )


def free_memory(device: str) -> int | None:
    """Returns the bytes of memory that are free on a device; None if the system does not tell."""
    return int(torch.cuda.mem_get_info()[0]) if device.startswith("cuda") else available_memory()


def tile_side(tile: int | str, *, channels: int, batch: int, itemsize: int, multiple: int) -> int:
    """Returns the side in pixels of the tiles that a picture is decoded in.

    Args:
        tile: the side, or the memory that a tile may take, such as ``2GB``.
        channels: channels of the second block of the decoder.
        batch: number of images that are drawn together.
        itemsize: bytes of a number.
        multiple: pixels of one place of the latent; the side is a multiple of it.

    Raises:
        ValueError: the side is too small for tiles that overlap.
    """
    side = tile if isinstance(tile, int) else math.isqrt(bytes_of(tile) // (DECODER * channels * batch * itemsize))
    least = 8 * multiple
    if side < least:
        raise ValueError(f"got tile={tile}, that is {side} pixels, expected at least {least} for this pipeline")
    return side - side % multiple
