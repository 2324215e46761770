"""Makes the context of a model from a query and its neighbours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdm.modules.grid_tokens import GridTokens

KINDS, GRIDS = ("pooled", "grid"), (1, 2, 4)


class Conditioner(nn.Module):
    """Makes context tokens of neighbours, optionally with the query as the first token. It has no weights.

    Args:
        k: number of neighbours of a training image; sampling may use another number.
        normalize: scale every vector to length ``scale``; otherwise raw vectors are used. The released RDM was trained
            on raw vectors, the released 768-pixel model on normalised ones.
        scale: length of a normalised vector; with ``sqrt(D)``, its entries have a mean square of 1.
        include_query: make the query the first token (text + neighbours).
        tokens: what the model sees of a neighbour: its ``pooled`` vector, or the vector and a ``grid`` of tokens.
        grid: side g of that grid: 1, 2 or 4.
        token_width: width D' of the tokens of the embedder; required for a grid.
    """

    def __init__(
        self,
        k: int = 4,
        normalize: bool = False,
        scale: float = 1.0,
        include_query: bool = False,
        tokens: str = "pooled",
        grid: int = 4,
        token_width: int | None = None,
    ) -> None:
        super().__init__()
        if tokens not in KINDS or grid not in GRIDS:
            raise ValueError(f"conditioner: got tokens='{tokens}', grid={grid}; expected pooled or grid, and 1, 2 or 4")
        if tokens == "grid" and (token_width is None or token_width < 1):
            raise ValueError(
                f"conditioner: got token_width={token_width} with tokens: grid, expected the width of the embedder's "
                "tokens"
            )
        if k < 1 or scale <= 0:
            raise ValueError(f"conditioner: got k={k}, scale={scale}; expected k >= 1 and scale > 0")
        self.k, self.normalize, self.scale, self.include_query = k, normalize, scale, include_query
        self.grid, self.token_width = grid if tokens == "grid" else None, token_width

    def grid_tokens(self, context_dim: int) -> GridTokens | None:
        """Returns a new module for the grids of neighbours, which has weights; None if there are pooled vectors only.

        Args:
            context_dim: width D of the context.
        """
        if self.grid is None or self.token_width is None:
            return None
        return GridTokens(self.token_width, context_dim, self.grid, self.k)

    def forward(self, neighbours: Tensor, query: Tensor | None = None, include_query: bool | None = None) -> Tensor:
        """Returns the context ``[B, L, D]``; L is K, and one more with the query.

        Args:
            neighbours: ``[B, K, D]``; K may be 0 with a query.
            query: ``[B, D]``; the first token with ``include_query``.
            include_query: replaces the conditioner's own setting.

        Raises:
            ValueError: the shapes do not fit together, or the query is missing.
        """
        include = self.include_query if include_query is None else include_query
        tokens = neighbours
        if include:
            if query is None or query.shape != neighbours.shape[::2]:
                got = None if query is None else tuple(query.shape)
                raise ValueError(f"query: got {got}, expected [B, D] beside neighbours {tuple(neighbours.shape)}")
            tokens = torch.cat([query[:, None].to(neighbours), neighbours], dim=1)
        if tokens.ndim != 3 or tokens.shape[1] == 0:
            raise ValueError(f"context: got {tuple(tokens.shape)}, expected [B, L, D] with at least one token")
        return F.normalize(tokens, dim=-1) * self.scale if self.normalize else tokens
