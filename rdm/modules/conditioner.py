"""What the denoiser may look at, made from a query and its neighbours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conditioner(nn.Module):
    """Neighbours (and, where asked, the query before them) as context tokens. It has no weights.

    Args:
        k: neighbours a training image is given; sampling may give another number.
        normalize: bring every vector to length ``scale``; raw vectors are passed on otherwise. The released RDM was
            trained on raw vectors, the released 768-pixel model on normalised ones.
        scale: length of a normalised vector; ``sqrt(D)`` gives its entries unit size.
        include_query: the query takes the first place (text + neighbours).
    """

    def __init__(self, k: int = 4, normalize: bool = False, scale: float = 1.0, include_query: bool = False) -> None:
        super().__init__()
        if k < 1 or scale <= 0:
            raise ValueError(f"conditioner: got k={k}, scale={scale}; expected k >= 1 and scale > 0")
        self.k, self.normalize, self.scale, self.include_query = k, normalize, scale, include_query

    def forward(self, neighbours: Tensor, query: Tensor | None = None, include_query: bool | None = None) -> Tensor:
        """Returns the context ``[B, L, D]``; L is K, and one more with the query.

        Args:
            neighbours: ``[B, K, D]``; K may be 0 with a query.
            query: ``[B, D]``; takes the first place where ``include_query`` says so.
            include_query: stronger than the setting of the conditioner.

        Raises:
            ValueError: shapes that do not belong together, or a query asked for and not given.
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
