"""Grids of tokens: the feature map of each neighbour's picture, as context tokens after its pooled vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GridTokens(nn.Module):
    """Makes the context of pooled vectors and grids of tokens.

    A token is normalised and projected to the width of the context. A learned vector for its place in the grid and one
    for the rank of its neighbour are added, which are zeros at first. The pooled vectors are passed on as they are.

    Args:
        width: width D' of the tokens, which depends on the embedder.
        context_dim: width D of the context.
        grid: side g of the grid.
        ranks: number of neighbours with a rank of their own; further neighbours share the last one.
    """

    def __init__(self, width: int, context_dim: int, grid: int, ranks: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.project = nn.Linear(width, context_dim)
        self.places = nn.Parameter(torch.zeros(grid * grid, context_dim))
        self.ranks = nn.Parameter(torch.zeros(ranks, context_dim))

    def forward(self, pooled: Tensor, grids: Tensor) -> Tensor:
        """Returns the context ``[B, K * (1 + g * g), D]``: the pooled vector of each neighbour, then its tokens.

        Args:
            pooled: ``[B, K, D]``.
            grids: ``[B, K, g * g, D']``, raw tokens. A neighbour whose tokens are all zeros keeps zeros.

        Raises:
            ValueError: the grids do not fit the pooled vectors or this module.
        """
        expected = (*pooled.shape[:2], len(self.places), self.project.in_features)
        if grids.shape != expected:
            raise ValueError(
                f"neighbour_tokens: got shape {tuple(grids.shape)}, expected {expected}; give data.params.tokens and "
                "model.params.conditioner the same grid, and token_width the width of the embedder's tokens"
            )
        ranks = self.ranks[torch.arange(pooled.shape[1], device=pooled.device).clamp_max(len(self.ranks) - 1)]
        made = self.project(self.norm(grids.float())) + self.places + ranks[:, None]
        shown = grids.abs().amax((2, 3), keepdim=True) > 0
        tokens = torch.where(shown, made, 0.0).to(pooled.dtype)
        return torch.cat([pooled[:, :, None], tokens], dim=2).flatten(1, 2)
