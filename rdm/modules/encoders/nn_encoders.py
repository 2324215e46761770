"""CompVis' names for passing neighbours' embeddings on as they are."""

from __future__ import annotations

import torch
from torch import Tensor

from rdm.compat import flat_neighbours


class CLIPEmbeddingReshaper:
    """``[B, patches, K, D]`` to ``[B, patches K, D] float32``."""

    def __call__(self, neighbours: Tensor) -> Tensor:
        """Returns the neighbours of all patches behind each other."""
        return flat_neighbours(neighbours).float()


class IdentityEncoder(torch.nn.Identity):
    """Returns what it is given; ``encode`` in float32, unless told otherwise."""

    def __init__(self, to_float32: bool = True) -> None:
        super().__init__()
        self.to_float32 = to_float32

    def encode(self, neighbours: Tensor) -> Tensor:
        """Returns the neighbours."""
        return neighbours.float() if self.to_float32 else neighbours


class NNReshaper:
    """``[B, patches, K, H, W, C]`` to ``[B patches K, C, H, W]``."""

    def __call__(self, neighbours: Tensor) -> Tensor:
        """Returns the neighbours' images as one batch, channels first."""
        return neighbours.flatten(0, 2).movedim(-1, 1)


class NNEmbeddingReshaper:
    """``[B, patches, K, D]`` to ``[B, patches K, D]``, in the same type."""

    def __call__(self, neighbours: Tensor) -> Tensor:
        """Returns the neighbours of all patches behind each other."""
        return flat_neighbours(neighbours)
