"""What a denoiser is conditioned on: context tokens, further channels, classes, or tokens and channels together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor


class Hybrid(NamedTuple):
    """A condition of two parts."""

    image: Tensor
    """Channels ``[B, C', h, w]`` that are concatenated to those of x_t."""
    tokens: Tensor
    """Context tokens ``[B, L, D]``."""


Condition = Tensor | Hybrid | None


def of_tensors(function: Callable[..., Tensor], *conditions: Any) -> Any:
    """Returns the condition whose tensors a function makes of those of one or more conditions of the same kind."""
    if isinstance(conditions[0], Hybrid):
        return Hybrid(*(function(*tensors) for tensors in zip(*conditions, strict=True)))
    return function(*conditions)
