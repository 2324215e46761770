"""What every model with neighbours as its condition shares: their context, and the null context without them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint import average_as_weights
from ldm.models.diffusion.condition import checked_share, of_tensors, with_nulls
from ldm.util import check_params
from rdm.modules.conditioner import Conditioner
from rdm.modules.grid_tokens import GridTokens

LOG = logging.getLogger(__name__)
TOKENS_KEY = "neighbour_tokens"


class NeighbourConditioned:
    """Mixin for a model that is conditioned on the neighbours in its batch; it knows nothing of databases.

    A model calls :meth:`set_conditioning` once, at the end of its constructor.
    """

    conditioner: Conditioner
    grid_tokens: GridTokens | None
    p_uncond: float
    use_neighbours: bool
    neighbours_key: str

    def set_conditioning(
        self, conditioner: Mapping[str, Any] | None, p_uncond: float, use_neighbours: bool, neighbours_key: str
    ) -> None:
        """Sets how neighbours become the context.

        Args:
            conditioner: arguments of :class:`Conditioner`, see :func:`make_conditioner`.
            p_uncond: probability of training an image with the null context, as classifier-free guidance needs it.
            use_neighbours: ``False`` gives the model the null context alone: the baseline without retrieval.
            neighbours_key: where a batch holds the embeddings ``[B, K, D]``.

        Raises:
            ValueError: ``p_uncond`` is no probability, or the conditioner has no such argument.
        """
        self.conditioner, self.p_uncond = make_conditioner(conditioner), checked_share(p_uncond)
        self.use_neighbours, self.neighbours_key = use_neighbours, neighbours_key

    @property
    def k(self) -> int:
        """The usual number of neighbours of an image, which is the number in training."""
        return self.conditioner.k

    def null_context(self, context: Any) -> Any:
        """Returns the null context, which is zeros of the shape of the given one."""
        return of_tensors(torch.zeros_like, context)

    def context(self, batch: Mapping[str, Any]) -> Tensor:
        """Returns the context of a batch's neighbours, ``[B, K, D]``, or ``[B, K * (1 + g * g), D]`` with grids.

        Raises:
            ValueError: the batch holds no neighbours or no grids of their tokens, or fewer than the conditioner's k.
        """
        k = self.conditioner.k
        if self.neighbours_key not in batch or batch[self.neighbours_key].shape[1] < k:
            got = tuple(batch[self.neighbours_key].shape) if self.neighbours_key in batch else "none"
            raise ValueError(f"neighbours: got {got}, expected [B, {k}, D]; set data.params.k to {k}")
        context = self.conditioner(batch[self.neighbours_key][:, :k])
        if self.grid_tokens is not None:
            if TOKENS_KEY not in batch:
                expected = f"[B, {k}, {len(self.grid_tokens.places)}, {self.conditioner.token_width}]"
                raise ValueError(f"{TOKENS_KEY}: got none, expected {expected}; set data.params.tokens")
            context = self.grid_tokens(context, batch[TOKENS_KEY][:, :k])
        return context if self.use_neighbours else self.null_context(context)

    def drop_context(self, context: Any, generator: torch.Generator) -> Any:
        """Returns the context of B images; each has the null context instead with probability ``p_uncond``."""
        return with_nulls(context, self.null_context(context), self.p_uncond, generator)


def make_conditioner(config: Mapping[str, Any] | None) -> Conditioner:
    """Returns the conditioner of a config.

    Raises:
        ValueError: the conditioner has no such argument.
    """
    check_params("conditioner", Conditioner, config or {})
    return Conditioner(**(config or {}))


def with_grid_weights(state: dict[str, Tensor], prefix: str, module: GridTokens | None) -> dict[str, Tensor]:
    """Returns initial weights, with new ones for grids of tokens if the weights are those of a model without them.

    Args:
        state: the weights by name.
        prefix: the beginning of the names of the module's weights.
        module: what makes the context of grids; None for a model of pooled vectors.

    Raises:
        ValueError: the weights are those of a model with grids, but this model has none.
    """
    theirs = any(name.startswith(prefix) for name in state)
    if theirs and module is None:
        raise ValueError(
            "the initial weights are of a model with tokens: grid, got a conditioner with tokens: pooled; set "
            "model.params.conditioner.tokens to grid, or give the weights of a pooled model"
        )
    if theirs or module is None:
        return state
    LOG.info("the weights are of a model without grids of tokens; those of the grids are new")
    new = {f"{prefix}{name}": value for name, value in module.state_dict().items()}
    return {**average_as_weights(state), **new}
