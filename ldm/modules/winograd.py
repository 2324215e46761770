"""The gradient of a 3x3 convolution's weight by Winograd's minimal filtering, with a quarter of the multiplications.

Lavin & Gray 2016 (arXiv 1509.09308), F(4x4, 3x3). An output tile of 4x4 pixels reads 6x6 pixels of the input. In a
transformed space of 36 numbers, the convolution of a tile is one product per number, so that the gradient of the
weight is 36 matrix products over all tiles. The gradient is a sum over tiles, which does not have to be undone for each
of them, so that only the weight is transformed back.

``B`` batch, ``C`` input channels, ``O`` output channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TILE, SEEN, KERNEL = 4, 6, 3
# At most so many transformed numbers are in use at a time, so that they stay in the cache.
NUMBERS_AT_ONCE = 1 << 20

# The matrices of F(4, 3) for one dimension, with the interpolation points 0, 1, -1, 2, -2 and infinity.
INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
WEIGHT = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
OUTPUT = ((1, 0, 0, 0), (1, 1, 1, 1), (1, -1, 1, -1), (1, 2, 4, 8), (1, -2, 4, -8), (0, 0, 0, 1))


def _both(matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    """Returns the matrix that transforms both dimensions of a flattened tile."""
    one = torch.tensor(matrix, dtype=torch.float64, device="cpu")
    return torch.kron(one, one).float()


OF_INPUT, OF_WEIGHT, OF_OUTPUT = _both(INPUT), _both(WEIGHT).t().contiguous(), _both(OUTPUT)


def weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """Returns the gradient [O, C, 3, 3] of the weight of a 3x3 convolution with padding 1 and stride 1.

    Args:
        x: the convolution's input [B, C, h, w] float32 on the CPU; h and w are multiples of 4.
        gradient: the gradient of its output [B, O, h, w].
    """
    (batch, channels, h, w), out = x.shape, gradient.shape[1]
    down, right = h // TILE, w // TILE
    framed = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).contiguous()
    image, row, column, _ = framed.stride()
    shape = (SEEN, SEEN, batch, down, right, channels)
    seen = framed.as_strided(shape, (row, column, image, TILE * row, TILE * column, 1))
    tiles = (
        gradient.permute(0, 2, 3, 1).unflatten(2, (right, TILE)).unflatten(1, (down, TILE)).permute(2, 4, 0, 1, 3, 5)
    )
    total = x.new_zeros(SEEN * SEEN, channels, out)
    images = max(1, NUMBERS_AT_ONCE // (SEEN * SEEN * down * right * (2 * channels + out)))
    for start in range(0, batch, images):
        part = slice(start, start + images)
        inputs = (OF_INPUT @ seen[:, :, part].reshape(SEEN * SEEN, -1)).view(SEEN * SEEN, -1, channels)
        outputs = (OF_OUTPUT @ tiles[:, :, part].reshape(TILE * TILE, -1)).view(SEEN * SEEN, -1, out)
        total.baddbmm_(inputs.transpose(1, 2), outputs)
    weight = (OF_WEIGHT @ total.flatten(1)).view(KERNEL, KERNEL, channels, out)
    return weight.permute(3, 2, 0, 1)
