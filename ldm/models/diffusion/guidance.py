"""Classifier-free guidance: everything a sampler must not know is closed over here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(x_t [B, C, h, w], t [B]) -> eps [B, C, h, w], with all conditioning closed over."""


def guide(
    model: Callable[[Tensor, Tensor, Any], Tensor],
    context: Tensor | None,
    null: Tensor | None = None,
    scale: float = 1.0,
    *,
    project: Callable[[Tensor], Any] = lambda tokens: tokens,
) -> Denoiser:
    """Returns the denoiser eps_null + scale * (eps - eps_null).

    Scale 1 costs one forward pass of B (as does 0, which ignores the context), any other one pass of 2B.

    Args:
        model: (x_t [B, C, h, w], t [B], projected context) -> eps [B, C, h, w].
        context: tokens [B, L, D]; None for an unconditional model.
        null: tokens that mean "no context", of the context's shape or broadcastable to it; needed where the
            scale is not 1.
        scale: guidance scale.
        project: what the model does to its context before it looks at x and t, done here, once for all steps; None
            stays None.

    Raises:
        ValueError: a scale other than 1 without a context and null tokens that fit each other.

    Source: Ho & Salimans 2021, equation 6, in CompVis' scaling (1 is no guidance).
    """
    if scale == 1.0:
        return _see(model, None if context is None else project(context))
    if context is None or null is None:
        raise ValueError(f"guidance scale is {scale}, expected 1 without a context and a null context; give both")
    if null.ndim != context.ndim or any(a not in (1, b) for a, b in zip(null.shape, context.shape, strict=True)):
        raise ValueError(
            f"null context has shape {list(null.shape)}, expected that of the context, {list(context.shape)}"
        )
    null = null.to(context).expand_as(context)
    if scale == 0.0:
        return _see(model, project(null))
    both = project(torch.cat([null, context]))

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        without, with_context = model(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        return torch.lerp(without, with_context, scale)

    return denoise


def _see(model: Callable[[Tensor, Tensor, Any], Tensor], context: Any) -> Denoiser:
    return lambda x, t: model(x, t, context)
