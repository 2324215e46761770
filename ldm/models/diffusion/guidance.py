"""Classifier-free guidance and autoguidance. They make the denoiser that a sampler calls, with all conditions in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ldm.models.diffusion.condition import Condition, Hybrid, of_tensors

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(x_t [B, C, h, w], t [B]) -> eps [B, C, h, w], with all conditions in it."""

Model = Callable[[Tensor, Tensor, Any], Tensor]
"""(x_t [B, C, h, w], t [B], projected context) -> eps [B, C, h, w]."""

USUAL_SCALE = 2.0


def guide(
    model: Model,
    context: Condition,
    null: Condition = None,
    scale: float = 1.0,
    *,
    parts: Sequence[tuple[Tensor | Hybrid, float]] = (),
    rescale: float = 0.0,
    levels: Tensor | None = None,
    interval: tuple[int, int] | None = None,
    project: Callable[[Any], Any] = lambda condition: condition,
) -> Denoiser:
    """Returns the denoiser with classifier-free guidance, eps_null + scale * (eps - eps_null).

    A call costs one forward pass of batch size B for each of null, parts and context whose weight is not 0. At scale 1
    that is the context alone, at scale 0 the null context alone.

    Args:
        model: the network.
        context: the condition: tokens [B, L, D], or a :class:`Hybrid`; None for an unconditional model.
        null: the null context, of the context's shape or broadcastable to it; required if the scale is not 1. Tokens
            alone leave the channels of a hybrid as they are, as CompVis' code does.
        scale: guidance scale; 1 for none.
        parts: parts of the context with scales of their own. Each is a condition of the context's shape that shows
            more than the one before, with its scale: eps_null + s_1 * (eps_1 - eps_null) + s_2 * (eps_2 - eps_1) + ...
            + scale * (eps - eps_n) (Brooks et al. 2023, arXiv 2211.09800, equation 3).
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
        if scale != 1.0 or parts:
            raise ValueError(f"guidance scale is {scale}, expected 1 without a context and a null context; give both")
        return _see(model, None if context is None else project(context))
    shown = [_fitting(null, context, "null context"), *(_fitting(part, context, "part") for part, _ in parts), context]
    scales = [1.0, *(each for _, each in parts), scale, 0.0]
    weighted = [(each, here - after) for each, here, after in zip(shown, scales, scales[1:], strict=False)]
    seen = [(each, weight) for each, weight in weighted if weight != 0]
    if len(seen) == 1:
        return _see(model, project(seen[0][0]))
    together = project(of_tensors(lambda *tensors: torch.cat(tensors), *(each for each, _ in seen)))
    weights = [weight for _, weight in seen]

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        found = model(torch.cat([x] * len(seen)), torch.cat([t] * len(seen)), together).chunk(len(seen))
        if len(seen) == 2:
            eps = torch.lerp(found[0], found[1], weights[1])
        else:
            eps = sum(
                (weight * each for weight, each in zip(weights[1:], found[1:], strict=True)), weights[0] * found[0]
            )
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


def _fitting(given: Tensor | Hybrid, context: Tensor | Hybrid, what: str) -> Tensor | Hybrid:
    """Returns a condition broadcast to the shape of the context, or raises ValueError if that is impossible."""
    if isinstance(context, Hybrid) and not isinstance(given, Hybrid):
        given = context._replace(tokens=given)

    def fitted(tensor: Tensor, like: Tensor) -> Tensor:
        if tensor.ndim != like.ndim or any(a not in (1, b) for a, b in zip(tensor.shape, like.shape, strict=True)):
            raise ValueError(f"{what} has shape {list(tensor.shape)}, expected that of the context, {list(like.shape)}")
        return tensor.to(like).expand_as(like)

    return of_tensors(fitted, given, context)


def _rescaled(x: Tensor, eps: Tensor, unguided: Tensor, level: Tensor, share: float) -> Tensor:
    """Returns the eps of the same predicted image, with its deviation moved by ``share`` to that of ``unguided``."""
    image, plain = x - level * eps, x - level * unguided  # both are images times sqrt(alphas_cumprod)
    ratio = (plain.flatten(1).std(1) / image.flatten(1).std(1)).nan_to_num(1.0, 1.0).view_as(level)
    return (x - (share * ratio + 1 - share) * image) / level


def _see(model: Model, context: Any) -> Denoiser:
    return lambda x, t: model(x, t, context)
