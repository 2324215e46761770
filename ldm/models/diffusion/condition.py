"""What a denoiser is conditioned on: context tokens, further channels, classes, or tokens and channels together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldm.parallel import rand


class Hybrid(NamedTuple):
    """A condition of two parts."""

    image: Tensor
    """Channels ``[B, C', h, w]`` that are concatenated to those of x_t."""
    tokens: Tensor
    """Context tokens ``[B, L, D]``."""


Condition = Tensor | Hybrid | None


def of_tensors(function: Callable[..., Tensor], *conditions: Any) -> Any:
    """Returns the condition whose tensors a function makes of those of one or more conditions of the same kind.

    Of no condition (None), it makes none.
    """
    if conditions[0] is None:
        return None
    if isinstance(conditions[0], Hybrid):
        return Hybrid(*(function(*tensors) for tensors in zip(*conditions, strict=True)))
    return function(*conditions)


def with_nulls(context: Any, null: Any, probability: float, generator: torch.Generator) -> Any:
    """Returns the condition of B images; each has the null condition instead with a probability."""
    tokens = context.tokens if isinstance(context, Hybrid) else context
    dropped = rand([len(tokens)], generator).to(tokens.device) < probability

    def chosen(empty: Tensor, given: Tensor) -> Tensor:
        return torch.where(dropped.view(-1, *[1] * (given.ndim - 1)), empty, given)

    return of_tensors(chosen, null, context)


def checked_share(p_uncond: float) -> float:
    """Returns the probability of the null condition after a check.

    Raises:
        ValueError: it is no probability below 1.
    """
    if not 0.0 <= p_uncond < 1.0:
        raise ValueError(f"p_uncond: got {p_uncond}, expected a probability below 1")
    return p_uncond
