"""Samplers: pure functions from a denoiser and noise to a latent, with the arguments of :class:`Sampler`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.models.diffusion.stepping import (
    Denoiser,
    Noise,
    OnStep,
    Step,
    Steps,
    half_log_snr,
    move,
    observe,
    require_deterministic,
    require_noise,
    times_of,
    walk,
)


class Sampler(Protocol):
    """The signature of all samplers. The arguments are described in :func:`ddim`.

    The default of ``eta`` differs by sampler. Deterministic samplers accept only 0.
    """

    def __call__(
        self,
        denoise: Denoiser,
        x: Tensor,
        schedule: NoiseSchedule,
        steps: Steps,
        *,
        eta: float = ...,
        noise: Noise | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Returns the latent [B, C, h, w]."""


@torch.no_grad()
def ddim(
    denoise: Denoiser,
    x: Tensor,
    schedule: NoiseSchedule,
    steps: Steps,
    *,
    eta: float = 0.0,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Returns the latent [B, C, h, w] by DDIM; the last step leads to ``alphas_cumprod[0]``, as in CompVis' code.

    Args:
        denoise: the denoiser, ``(x_t [B, C, h, w], t [B]) -> eps``.
        x: initial noise [B, C, h, w].
        schedule: the noise schedule.
        steps: number of steps, or a list of increasing times.
        eta: amount of new noise; 0 is deterministic, 1 is as stochastic as DDPM.
        noise: source of the noise, required if eta is not 0.
        on_step: observer, called after each step.

    Raises:
        ValueError: wrong steps, or eta is not 0 and there is no source of noise.

    Source: Song et al. 2021 (arXiv 2010.02502), equations 12 and 16.
    """
    return _ddim(denoise, x, schedule, steps, None, eta, noise, on_step)


@torch.no_grad()
def ddpm(
    denoise: Denoiser,
    x: Tensor,
    schedule: NoiseSchedule,
    steps: Steps,
    *,
    eta: float = 1.0,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Returns the latent [B, C, h, w] by ancestral sampling from the posterior; the last step leads to x0.

    With fewer than T steps, this samples the shorter chain of the chosen times (Nichol & Dhariwal 2021). Arguments are
    those of ``ddim``. With eta = 1, a step of ``ddim`` is the posterior of Ho et al. 2020, equations 6 and 7, expressed
    by the noise instead of x0. As in CompVis' code, ``schedule.v_posterior`` moves the variance of the new noise
    towards beta, and the mean stays as it is.

    Raises:
        ValueError: wrong steps, or no source of noise.
    """
    return _ddim(denoise, x, schedule, steps, 1.0, eta, noise, on_step)


def _ddim(
    denoise: Denoiser,
    x: Tensor,
    schedule: NoiseSchedule,
    steps: Steps,
    end: float | None,
    eta: float,
    noise: Noise | None,
    on_step: OnStep | None,
) -> Tensor:
    require_noise(eta, noise)
    wide = schedule.v_posterior
    for index, t, t_next, level, level_next in walk(schedule, steps, end):
        eps = denoise(x, times_of(t, x))
        sigma = eta * math.sqrt((1 - level_next) / (1 - level) * (1 - level / level_next))
        x, x0 = move(x, eps, level, level_next, sigma)
        if end is not None and level_next < 1:  # ancestral: the last step, to x0, has no noise
            sigma = math.sqrt((1 - wide) * sigma**2 + wide * eta**2 * (1 - level / level_next))
        if sigma and noise is not None:
            x = x + sigma * noise(x)
        x = observe(on_step, Step(index, t, t_next, x, x0))
    return x


@torch.no_grad()
def plms(
    denoise: Denoiser,
    x: Tensor,
    schedule: NoiseSchedule,
    steps: Steps,
    *,
    eta: float = 0.0,
    noise: Noise | None = None,  # noqa: ARG001 - all samplers are called alike
    on_step: OnStep | None = None,
) -> Tensor:
    """Returns the latent [B, C, h, w] by PLMS: DDIM steps with a linear multistep estimate of eps.

    The first step calls the denoiser twice. Arguments are those of ``ddim``; eta must be 0.

    Raises:
        ValueError: wrong steps, or eta is not 0.

    Source: Liu et al. 2022 (arXiv 2202.09778), equations 9, 12 and 13.
    """
    require_deterministic("plms", eta)
    history: list[Tensor] = []
    for index, t, t_next, level, level_next in walk(schedule, steps, None):
        eps = denoise(x, times_of(t, x))
        if not history:
            guess, _ = move(x, eps, level, level_next)
            mean = (eps + denoise(guess, times_of(t_next or 0, x))) / 2
        elif len(history) == 1:
            mean = (3 * eps - history[-1]) / 2
        elif len(history) == 2:
            mean = (23 * eps - 16 * history[-1] + 5 * history[-2]) / 12
        else:
            mean = (55 * eps - 59 * history[-1] + 37 * history[-2] - 9 * history[-3]) / 24
        history = [*history[-2:], eps]
        x, x0 = move(x, mean, level, level_next)
        x = observe(on_step, Step(index, t, t_next, x, x0))
    return x


@torch.no_grad()
def heun(
    denoise: Denoiser,
    x: Tensor,
    schedule: NoiseSchedule,
    steps: Steps,
    *,
    eta: float = 0.0,
    noise: Noise | None = None,  # noqa: ARG001 - all samplers are called alike
    on_step: OnStep | None = None,
) -> Tensor:
    """Returns the latent [B, C, h, w] by Heun's method: the eps of a step is the mean of those at both of its ends.

    Each step calls the denoiser twice. The variables are those in which DDIM is Euler's method: x divided by the
    signal, as a function of the ratio of noise to signal. Arguments are those of ``ddim``; eta must be 0.

    Raises:
        ValueError: wrong steps, or eta is not 0.

    Source: Karras et al. 2022 (arXiv 2206.00364), algorithm 1.
    """
    require_deterministic("heun", eta)
    for index, t, t_next, level, level_next in walk(schedule, steps, None):
        eps = denoise(x, times_of(t, x))
        guess, _ = move(x, eps, level, level_next)
        mean = (eps + denoise(guess, times_of(t_next or 0, x))) / 2
        x, x0 = move(x, mean, level, level_next)
        x = observe(on_step, Step(index, t, t_next, x, x0))
    return x


@torch.no_grad()
def dpmpp_2m(
    denoise: Denoiser,
    x: Tensor,
    schedule: NoiseSchedule,
    steps: Steps,
    *,
    eta: float = 0.0,
    noise: Noise | None = None,  # noqa: ARG001 - all samplers are called alike
    on_step: OnStep | None = None,
) -> Tensor:
    """Returns the latent [B, C, h, w] by DPM-Solver++(2M), of second order in half the log signal-to-noise ratio.

    Each step calls the denoiser once. The last step leads to ``alphas_cumprod[0]``, as in DDIM. Arguments are those of
    ``ddim``; eta must be 0.

    Raises:
        ValueError: wrong steps, or eta is not 0.

    Source: Lu et al. 2022 (arXiv 2211.01095), algorithm 2.
    """
    require_deterministic("dpmpp_2m", eta)
    return _dpmpp_2m(denoise, x, schedule, steps, 0.0, None, on_step)


@torch.no_grad()
def dpmpp_2m_sde(
    denoise: Denoiser,
    x: Tensor,
    schedule: NoiseSchedule,
    steps: Steps,
    *,
    eta: float = 1.0,
    noise: Noise | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Returns the latent [B, C, h, w] by SDE-DPM-Solver++(2M): ``dpmpp_2m`` with new noise in every step.

    Arguments are those of ``ddim``. eta is the amount of noise: 1 solves the reverse SDE, 0 is ``dpmpp_2m``.

    Raises:
        ValueError: wrong steps, or no source of noise.

    Source: Lu et al. 2022 (arXiv 2211.01095), section 5; for other eta, Xue et al. 2023 (arXiv 2309.05019), section 4,
    where it is the square of their tau.
    """
    require_noise(eta, noise)
    return _dpmpp_2m(denoise, x, schedule, steps, eta, noise, on_step)


def _dpmpp_2m(
    denoise: Denoiser,
    x: Tensor,
    schedule: NoiseSchedule,
    steps: Steps,
    eta: float,
    noise: Noise | None,
    on_step: OnStep | None,
) -> Tensor:
    x0_before: Tensor | None = None
    h_before = 1.0
    for index, t, t_next, level, level_next in walk(schedule, steps, None):
        _, x0 = move(x, denoise(x, times_of(t, x)), level, level_next)
        h = half_log_snr(level_next) - half_log_snr(level)
        mean = x0
        if x0_before is not None:
            mean = x0 + (x0 - x0_before) * (h / (2 * h_before))
        kept = math.sqrt((1 - level_next) / (1 - level)) * math.exp(-eta * h)
        x = kept * x - math.sqrt(level_next) * math.expm1(-(1 + eta) * h) * mean
        if eta and noise is not None:
            x = x + math.sqrt((1 - level_next) * -math.expm1(-2 * eta * h)) * noise(x)
        if h > 0:  # otherwise, the time is repeated
            x0_before, h_before = x0, h
        made, x = x, observe(on_step, Step(index, t, t_next, x, x0))
        if x is not made:  # the observer has replaced x, so that earlier steps do not lead to it
            x0_before = None
    return x


@torch.no_grad()
def unipc(
    denoise: Denoiser,
    x: Tensor,
    schedule: NoiseSchedule,
    steps: Steps,
    *,
    eta: float = 0.0,
    noise: Noise | None = None,  # noqa: ARG001 - all samplers are called alike
    on_step: OnStep | None = None,
    order: int = 2,
) -> Tensor:
    """Returns the latent [B, C, h, w] by UniPC: a multistep predictor, and a corrector that uses eps at its result.

    Each step calls the denoiser once. With the corrector, the order is that of the predictor plus one. Arguments are
    those of ``ddim``; eta must be 0.

    Args:
        denoise: the denoiser.
        x: initial noise.
        schedule: the noise schedule.
        steps: number of steps, or a list of increasing times.
        eta: must be 0.
        noise: not used.
        on_step: observer, called after each step.
        order: order of the predictor, 1 to 3; 2 is stable with guidance.

    Raises:
        ValueError: wrong steps or order, or eta is not 0.

    Source: Zhao et al. 2023 (arXiv 2302.04867), section 3, for the prediction of x0 and with B(h) = e^h - 1.
    """
    require_deterministic("unipc", eta)
    if order not in (1, 2, 3):
        raise ValueError(f"got order {order}, expected 1, 2 or 3")
    known: list[tuple[float, Tensor]] = []  # (lambda, x0) of earlier steps, the latest first
    before, predicted, level_before = x, x, 1.0
    for index, t, t_next, level, level_next in walk(schedule, steps, None):
        _, x0 = move(x, denoise(x, times_of(t, x)), level, level_next)
        if x is not predicted:  # the observer has replaced x, so that earlier steps do not lead to it
            known = []
        if known:
            x = _unified(before, level_before, level, known[:order], x0)
        if known and known[0][0] == half_log_snr(level):  # the time is repeated
            known.pop(0)
        known = [(half_log_snr(level), x0), *known[: order - 1]]
        before, level_before = x, level
        predicted = _unified(x, level, level_next, known)  # the order is limited by the number of earlier steps
        x = observe(on_step, Step(index, t, t_next, predicted, x0))
    return x


def _unified(
    x: Tensor, level: float, level_next: float, known: Sequence[tuple[float, Tensor]], found: Tensor | None = None
) -> Tensor:
    """Returns x at the next level by UniPC's formula.

    The predictor uses the known x0 of this and earlier steps. The corrector also uses ``found``, the x0 at the next
    level. Differences of x0, divided by those of lambda, approximate its derivatives. Their weights follow from the
    Taylor expansion of the exact solution (theorem 3.1); a single difference has the weight 1/2.
    """
    h = half_log_snr(level_next) - half_log_snr(level)
    if h == 0:
        return x
    (newest, x0), *others = known
    places = [(place - newest) / h for place, _ in others]
    slopes = [(value - x0) / place for (_, value), place in zip(others, places, strict=True)]
    if found is not None:
        places.append(1.0)
        slopes.append(found - x0)
    x = math.sqrt((1 - level_next) / (1 - level)) * x - math.sqrt(level_next) * math.expm1(-h) * x0
    if not slopes:
        return x
    weights = torch.full((1,), 0.5, dtype=torch.float64)
    if len(slopes) > 1:
        wanted, phi = [], math.expm1(-h) / -h - 1
        for power in range(1, len(slopes) + 1):
            wanted.append(phi * math.factorial(power) / math.expm1(-h))
            phi = phi / -h - 1 / math.factorial(power + 1)
        powers = torch.tensor([[place**power for place in places] for power in range(len(places))], dtype=torch.float64)
        weights = torch.linalg.solve(powers, torch.tensor(wanted, dtype=torch.float64))
    slope = sum(weight * each for weight, each in zip(weights.tolist(), slopes, strict=True))
    return x - math.sqrt(level_next) * math.expm1(-h) * slope


def clip_x0(denoise: Denoiser, schedule: NoiseSchedule, limit: float = 1.0) -> Denoiser:
    """Returns a denoiser whose eps gives an x0 within [-limit, limit], the range of images."""

    def clipped(x: Tensor, t: Tensor) -> Tensor:
        x0 = schedule.x0_from_eps(x, denoise(x, t), t).clamp(-limit, limit)
        return schedule.eps_from_x0(x, x0, t)

    return clipped


SAMPLERS: dict[str, Sampler] = {
    "ddim": ddim,
    "ddpm": ddpm,
    "plms": plms,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "unipc": unipc,
}

# The default sampler and each sampler's default number of steps, measured by benchmarks/samplers.py. With these steps,
# images are as good as with 100 steps of DDIM. Of the samplers with the fewest steps, the default is the one whose
# images are nearest to the limit of many steps.
USUAL = "unipc"
USUAL_STEPS = {"ddim": 50, "ddpm": 250, "plms": 20, "heun": 20, "dpmpp_2m": 10, "dpmpp_2m_sde": 20, "unipc": 10}
