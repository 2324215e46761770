"""Encodes and decodes large images tile by tile with blended seams, in the memory of one tile.

At a position that only one tile covers, the result is exactly that tile's own. A purely convolutional network with a
``margin`` of its receptive field gives the untiled result everywhere. The first stages of latent diffusion are not
purely convolutional: group norms and the attention in the middle depend on the whole picture. With tiles, they depend
on one tile, so that contrast and colour can differ from the untiled result; they change smoothly across seams. The
result can also be better: the emoji VQ-f4, trained on 64 pixels, reconstructs a mosaic of 512 pixels at 21.5 dB as a
whole, and at 22.5, 24.2 and 25.7 dB in tiles of 256, 128 and 64. Tiles of about the size of the training pictures are
best.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.util import bytes_of

# Number of tensors of the widest layer's size that are in memory at once: skip connection, norm, activation,
# convolution, the kernels' own copies, and memory that the allocator cannot reuse. Measurements on a CPU gave 6 for
# large tiles and 11 for small networks.
ALIVE = 12
DISTANCES = 3  # the same number for the distances between latents and codes


def starts(side: int, tile: int, overlap: int, step: int = 1) -> list[int]:
    """Returns the first positions of tiles along one axis: evenly spread multiples of ``step`` that cover the axis.

    Raises:
        ValueError: the overlap leaves a tile nothing of its own, or something is no multiple of ``step``.
    """
    if not 0 <= 2 * overlap <= tile or tile < 1:
        raise ValueError(f"tile: got {tile} with overlap {overlap}; expected an overlap of at most half the tile")
    if side % step or tile % step or overlap % step:
        raise ValueError(
            f"got side {side}, tile {tile}, overlap {overlap}; expected multiples of {step}, the downsampling factor"
        )
    if side <= tile:
        return [0]
    count = math.ceil((side - tile) / (tile - overlap))
    return [(side - tile) // step * i // count * step for i in range(count + 1)]


def ramps(begins: list[int], tile: int, scale: float, margin: int) -> list[Tensor]:
    """Returns the weight ``[tile * scale]`` of each tile along one axis: 1 where it is alone, linear in overlaps.

    Args:
        begins: of the tiles.
        tile: side.
        scale: of the output.
        margin: so much of a tile's inner edges has weight 0 where a neighbour can stand in.
    """
    length, cut = round(tile * scale), round(margin * scale)
    weights = [torch.ones(length) for _ in begins]
    for first, second, gap in zip(weights, weights[1:], torch.tensor(begins).diff().tolist(), strict=False):
        shared = length - round(gap * scale)
        rising = ((torch.arange(shared) + 0.5 - cut) / max(shared - 2 * cut, 1)).clamp(0, 1)
        first[length - shared :] *= rising.flip(0)
        second[:shared] *= rising
    return weights


def tiled(
    fn: Callable[[Tensor], Tensor], x: Tensor, tile: int, overlap: int, scale: float = 1.0, margin: int = 0
) -> Tensor:
    """Returns ``fn(x)`` computed tile by tile: ``[B, C', H * scale, W * scale]``.

    At a position that only one tile covers, the result is exactly that tile's own; overlaps are blended linearly. If
    ``x`` fits into one tile, the result is ``fn(x)``.

    Args:
        fn: maps ``[B, C, h, w]`` to ``[B, C', h * scale, w * scale]``.
        x: ``[B, C, H, W]``.
        tile: largest side of an input of ``fn``.
        overlap: smallest number of positions that neighbouring tiles share, at most half the tile.
        scale: of the output: 8 for a decoder that upsamples by 8, 1/8 for its encoder.
        margin: number of positions at a tile's inner edges that are ignored; at most half the overlap. A margin of the
            receptive field's radius makes a purely convolutional ``fn`` exact.

    Raises:
        ValueError: the sizes do not fit together.
    """
    if 2 * margin > overlap:
        raise ValueError(f"margin: got {margin} with overlap {overlap}, expected at most half of it")
    height, width = x.shape[2:]
    if max(height, width) <= tile:
        return fn(x)
    step = max(1, round(1 / scale))
    sides = [(min(side, tile), starts(side, tile, overlap, step)) for side in (height, width)]
    (tall, rows), (wide, columns) = sides
    vertical, horizontal = (ramps(begins, side, scale, margin) for side, begins in sides)
    out, total = x.new_zeros(0), x.new_zeros(1, 1, round(height * scale), round(width * scale), dtype=torch.float32)
    for top, down in zip(rows, vertical, strict=True):
        for left, across in zip(columns, horizontal, strict=True):
            piece = fn(x[:, :, top : top + tall, left : left + wide])
            if not len(out):
                out = piece.new_zeros(*piece.shape[:2], *total.shape[2:], dtype=torch.float32)
            weight = (down[:, None] * across).to(x.device)
            place = (..., _span(top, piece.shape[2], scale), _span(left, piece.shape[3], scale))
            out[place] += piece * weight
            total[place] += weight
    return out.div_(total).to(piece.dtype)


def _span(begin: int, length: int, scale: float) -> slice:
    return slice(round(begin * scale), round(begin * scale) + length)


def encode_tiled(stage: Any, image: Tensor, tile: int | str | None) -> Any:
    """Returns ``stage.encode(image)``, in tiles that share a quarter of their side.

    Args:
        stage: a first stage.
        image: ``[B, 3, H, W]``.
        tile: side in pixels, or the memory for a tile (``2GB``); ``None`` encodes the image as a whole.
    """
    if tile is None:
        return stage.encode(image)
    factor, side = stage.downsampling, tile_side(stage, tile, len(image))
    overlap, margin = (side // part // factor * factor for part in (4, 16))
    normal: set[bool] = set()

    def encode(part: Tensor) -> Tensor:
        latent = stage.encode(part)
        normal.add(isinstance(latent, DiagonalGaussianDistribution))
        return latent.parameters if True in normal else latent

    latent = tiled(encode, image, side, overlap, 1 / factor, margin)
    return DiagonalGaussianDistribution(latent) if True in normal else latent


def decode_tiled(stage: Any, latent: Tensor, tile: int | str | None) -> Tensor:
    """Returns ``stage.decode(latent)``, in tiles; ``tile`` is in pixels, as in :func:`encode_tiled`."""
    if tile is None:
        return stage.decode(latent)
    factor = stage.downsampling
    side = tile_side(stage, tile, len(latent)) // factor
    return tiled(stage.decode, latent, side, side // 4, factor, side // 16)


@torch.no_grad()
def reconstruct(stage: Any, images: Tensor, tile: int | str | None = None) -> Tensor:
    """Returns what a first stage makes of images ``[B, 3, H, W]``, from the mean of a distribution; see above."""
    latent = encode_tiled(stage, images, tile)
    latent = latent.mode() if isinstance(latent, DiagonalGaussianDistribution) else latent
    return decode_tiled(stage, latent, tile).float().clamp(-1, 1)


def tile_side(stage: Any, tile: int | str, batch_size: int) -> int:
    """Returns the side of a tile in pixels.

    Args:
        stage: the first stage.
        tile: the side, or the memory for the activations of a batch of tiles.
        batch_size: number of pictures in a batch.

    Raises:
        ValueError: the side is no multiple of the downsampling factor or smaller than 4 latents, or the memory is too
            small.
    """
    if isinstance(tile, str) and not tile.isdigit():
        return tile_within(stage, bytes_of(tile), batch_size)
    factor, side = stage.downsampling, int(tile)
    if side % factor or side < 4 * factor:
        raise ValueError(
            f"tile: got {side} pixels, expected a multiple of the first stage's downsampling factor {factor} of at "
            f"least {4 * factor}"
        )
    return side


@torch.no_grad()
def bytes_per_pixel(stage: nn.Module) -> float:
    """Returns an estimate of the bytes for a pixel of a tile that a first stage encodes or decodes in float32.

    A small picture is encoded and decoded. The estimate is :data:`ALIVE` times the activations of the largest layer, or
    :data:`DISTANCES` times the distances of its latents to all codes if these are more. It does not include weights.
    """
    probe: Any = stage
    weight = next(stage.parameters(), None)
    if weight is None:  # the latent is the image
        return 4 * 3
    side, largest = 8 * probe.downsampling, [0]
    codes = probe.quantize.n_e if hasattr(probe, "quantize") else 0

    def measure(_: nn.Module, __: Any, output: Tensor) -> None:
        largest.append(output.numel())

    hooks = [module.register_forward_hook(measure) for module in stage.modules() if isinstance(module, nn.Conv2d)]
    try:
        latent = probe.encode(torch.zeros(1, probe.encoder.conv_in.in_channels, side, side).to(weight))
        probe.decode(latent.mode() if isinstance(latent, DiagonalGaussianDistribution) else latent)
    finally:
        for hook in hooks:
            hook.remove()
    return 4 * max(ALIVE * max(largest) / side**2, DISTANCES * codes / probe.downsampling**2)


def tile_within(stage: nn.Module, limit: int, batch_size: int = 1) -> int:
    """Returns the side in pixels of the largest tile that can be encoded and decoded within ``limit`` bytes.

    The limit is for activations; it does not include the weights, the picture itself and Python.

    Raises:
        ValueError: not even the smallest tile fits.
    """
    factor = int(getattr(stage, "downsampling"))  # noqa: B009 (not an attribute of every module)
    side = math.isqrt(int(limit / (bytes_per_pixel(stage) * batch_size))) // (4 * factor) * 4 * factor
    if side < 4 * factor:
        need = bytes_per_pixel(stage) * batch_size * (4 * factor) ** 2
        raise ValueError(
            f"memory limit: got {limit / 1e6:.0f} MB, expected at least {need / 1e6:.0f} MB for the smallest tile "
            f"of {batch_size} pictures at once; lower the batch size"
        )
    return side
