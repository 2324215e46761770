"""Classifier-free guidance and autoguidance. They make the denoiser that a sampler calls, with all conditions in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(x_t [B, C, h, w], t [B]) -> eps [B, C, h, w], with all conditions in it."""

Model = Callable[[Tensor, Tensor, Any], Tensor]
"""(x_t [B, C, h, w], t [B], projected context) -> eps [B, C, h, w]."""


def guide(
    model: Model,
    context: Tensor | None,
    null: Tensor | None = None,
    scale: float = 1.0,
    *,
    part: Tensor | None = None,
    part_scale: float = 1.0,
    rescale: float = 0.0,
    levels: Tensor | None = None,
    interval: tuple[int, int] | None = None,
    project: Callable[[Tensor], Any] = lambda tokens: tokens,
) -> Denoiser:
    """Returns the denoiser with classifier-free guidance, eps_null + scale * (eps - eps_null).

    A call costs one forward pass of batch size B for each of null, part and context whose weight is not 0. At scale 1
    that is the context alone, at scale 0 the null context alone.

    Args:
        model: the network.
        context: tokens [B, L, D]; None for an unconditional model.
        null: the null context, of the context's shape or broadcastable to it; required if the scale is not 1.
        scale: guidance scale; 1 for none.
        part: tokens [B, l, D] of a part of the context with a scale of its own, where l divides L: eps_null +
            part_scale * (eps_part - eps_null) + scale * (eps - eps_part) (Brooks et al. 2023, arXiv 2211.09800,
            equation 3).
        part_scale: guidance scale of the part.
        rescale: a number from 0 to 1: how far the standard deviation of each predicted image is moved from its value
            with guidance to that without (Lin et al. 2024, arXiv 2305.08891, equations 14 to 16). It is applied to the
            image because the deviation of eps is always about 1.
        levels: sqrt(1 - alphas_cumprod) [T], from which the image is computed for ``rescale``.
        interval: first and last time at which guidance is used; at other times, eps of the context is returned
            (Kynkaanniemi et al. 2024, arXiv 2404.07724).
        project: the part of the model that depends on the context alone. It is called here, once for all steps, and not
            for a context of None.

    Raises:
        ValueError: guidance without a context and a null context that fit each other, or a rescale outside 0 to 1 or
            without levels.

    Source: Ho & Salimans 2021, equation 6, with CompVis' scale (1 is no guidance).
    """
    if not 0.0 <= rescale <= 1.0:
        raise ValueError(f"rescale is {rescale}, expected a number from 0 to 1")
    if rescale and levels is None:
        raise ValueError(f"rescale is {rescale} without noise levels, expected the schedule's sqrt(1 - alphas_cumprod)")
    if context is None or null is None:
        if scale != 1.0 or part is not None:
            raise ValueError(f"guidance scale is {scale}, expected 1 without a context and a null context; give both")
        return _see(model, None if context is None else project(context))
    seen = [(_fitting(null, context, "null context"), 1 - scale), (context, scale)]
    if part is not None:
        middle = _fitting(part.repeat_interleave(max(1, context.shape[1] // part.shape[1]), 1), context, "part")
        seen = [(seen[0][0], 1 - part_scale), (middle, part_scale - scale), (context, scale)]
    seen = [(tokens, weight) for tokens, weight in seen if weight != 0]
    if len(seen) == 1:
        return _see(model, project(seen[0][0]))
    together, weights = project(torch.cat([tokens for tokens, _ in seen])), [weight for _, weight in seen]

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        found = model(torch.cat([x] * len(seen)), torch.cat([t] * len(seen)), together).chunk(len(seen))
        if len(seen) == 2:
            eps = torch.lerp(found[0], found[1], weights[1])
        else:
            eps = weights[0] * found[0] + weights[1] * found[1] + weights[2] * found[2]
        if levels is None or not (rescale and scale):
            return eps
        return _rescaled(x, eps, found[-1], levels.to(x)[t].view(-1, *[1] * (x.ndim - 1)), rescale)

    if interval is None:
        return denoise
    first, last = interval
    plain = _see(model, project(context))
    return lambda x, t: denoise(x, t) if first <= int(t[0]) <= last else plain(x, t)


def autoguide(denoise: Denoiser, weaker: Denoiser, scale: float) -> Denoiser:
    """Returns the denoiser with autoguidance, eps_weaker + scale * (eps - eps_weaker).

    Args:
        denoise: the denoiser of the model.
        weaker: the denoiser of a smaller or less trained model with the same latents and the same context.
        scale: scale of autoguidance; 1 for the model alone.

    Source: Karras et al. 2024 (arXiv 2406.02507), equation 3.
    """
    return denoise if scale == 1.0 else lambda x, t: torch.lerp(weaker(x, t), denoise(x, t), scale)


def _fitting(tokens: Tensor, context: Tensor, what: str) -> Tensor:
    """Returns tokens broadcast to the shape of the context, or raises ValueError if that is impossible."""
    if tokens.ndim != context.ndim or any(a not in (1, b) for a, b in zip(tokens.shape, context.shape, strict=True)):
        raise ValueError(f"{what} has shape {list(tokens.shape)}, expected that of the context, {list(context.shape)}")
    return tokens.to(context).expand_as(context)


def _rescaled(x: Tensor, eps: Tensor, unguided: Tensor, level: Tensor, share: float) -> Tensor:
    """Returns the eps of the same predicted image, with its deviation moved by ``share`` to that of ``unguided``."""
    image, plain = x - level * eps, x - level * unguided  # both are images times sqrt(alphas_cumprod)
    ratio = (plain.flatten(1).std(1) / image.flatten(1).std(1)).nan_to_num(1.0, 1.0).view_as(level)
    return (x - (share * ratio + 1 - share) * image) / level


def _see(model: Model, context: Any) -> Denoiser:
    return lambda x, t: model(x, t, context)
