"""What every model that looks at neighbours shares: the context, and the null that stands for none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ldm.util import check_params
from rdm.modules.conditioner import Conditioner


class LooksAtNeighbours:
    """The part of a model that makes a context of a batch's neighbours; it knows nothing of databases.

    A model says once, after its own construction, what it looks at: :meth:`look_at`.
    """

    conditioner: Conditioner
    p_uncond: float
    use_neighbours: bool
    neighbours_key: str

    def look_at(
        self, conditioner: Mapping[str, Any] | None, p_uncond: float, use_neighbours: bool, neighbours_key: str
    ) -> None:
        """Sets what the model looks at.

        Args:
            conditioner: arguments of :class:`Conditioner`.
            p_uncond: probability of training an image with the null context, which is what guidance subtracts.
            use_neighbours: ``False`` for the same network on the null context alone, the baseline without retrieval.
            neighbours_key: where a batch holds the embeddings ``[B, K, D]``.

        Raises:
            ValueError: not a probability, or an unknown argument.
        """
        if not 0.0 <= p_uncond < 1.0:
            raise ValueError(f"p_uncond: got {p_uncond}, expected a probability below 1")
        check_params("conditioner", Conditioner, conditioner or {})
        self.conditioner = Conditioner(**(conditioner or {}))
        self.p_uncond, self.use_neighbours, self.neighbours_key = p_uncond, use_neighbours, neighbours_key

    def null_context(self, context: Tensor) -> Tensor:
        """Returns the context that means "nothing known", of the same shape: zeros."""
        return torch.zeros_like(context)

    def context(self, batch: Mapping[str, Any]) -> Tensor:
        """Returns the context ``[B, K, D]`` of a batch's neighbours.

        Raises:
            ValueError: the batch holds no neighbours, or fewer than the conditioner's k.
        """
        k = self.conditioner.k
        if self.neighbours_key not in batch or batch[self.neighbours_key].shape[1] < k:
            got = tuple(batch[self.neighbours_key].shape) if self.neighbours_key in batch else "none"
            raise ValueError(f"neighbours: got {got}, expected [B, {k}, D]; set data.params.k to {k}")
        context = self.conditioner(batch[self.neighbours_key][:, :k])
        return context if self.use_neighbours else self.null_context(context)

    def drop_context(self, context: Any, generator: torch.Generator) -> Any:
        """Returns the context with the null in place of a share ``p_uncond`` of the images."""
        dropped = torch.rand(len(context), generator=generator).to(context.device) < self.p_uncond
        return torch.where(dropped[:, None, None], self.null_context(context), context)
