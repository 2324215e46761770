"""CompVis' classes that return neighbours' embeddings unchanged or in another shape."""

from __future__ import annotations

import torch
from torch import Tensor

from rdm.compat import flat_neighbours


class CLIPEmbeddingReshaper:
    """Joins the neighbours of all patches, from ``[B, patches, K, D]`` to ``[B, patches K, D] float32``."""

    def __call__(self, neighbours: Tensor) -> Tensor:
        """Returns the neighbours of all patches as one sequence, in float32."""
        return flat_neighbours(neighbours).float()


class IdentityEncoder(torch.nn.Identity):
    """Returns its input unchanged; ``encode`` converts it to float32 if ``to_float32`` is true."""

    def __init__(self, to_float32: bool = True) -> None:
        super().__init__()
        self.to_float32 = to_float32

    def encode(self, neighbours: Tensor) -> Tensor:
        """Returns the neighbours."""
        return neighbours.float() if self.to_float32 else neighbours


class NNReshaper:
    """Joins the neighbours' images to a batch, from ``[B, patches, K, H, W, C]`` to ``[B patches K, C, H, W]``."""

    def __call__(self, neighbours: Tensor) -> Tensor:
        """Returns the neighbours' images as one batch, with channels first."""
        return neighbours.flatten(0, 2).movedim(-1, 1)


class NNEmbeddingReshaper:
    """Joins the neighbours of all patches, from ``[B, patches, K, D]`` to ``[B, patches K, D]`` in the same dtype."""

    def __call__(self, neighbours: Tensor) -> Tensor:
        """Returns the neighbours of all patches as one sequence."""
        return flat_neighbours(neighbours)
