"""Samplers: pure functions from a denoiser and noise to a latent.

All take ``(denoise, x, schedule, steps)`` first: the denoiser ``(x_t [B, C, h, w], t [B]) -> eps``, the noise
to start from [B, C, h, w], the noise schedule, and the number of steps (or the times themselves, rising). In
the code, ``level`` is alphas_cumprod at the time a step leaves, ``level_next`` at the time it leads to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.models.diffusion.schedule import NoiseSchedule

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(x_t [B, C, h, w], t [B]) -> eps [B, C, h, w]."""

Noise = Callable[[Tensor], Tensor]
"""x [B, C, h, w] -> standard normal noise of its shape and device; called once a step that needs it."""

Steps = int | Sequence[int]


@dataclass(frozen=True)
class Step:
    """What a sampler tells its observer after a step."""

    index: int
    """Number of the step, from 0."""
    t: int
    """Time the step started at."""
    t_next: int | None
    """Time it led to, where the next one starts; None after the last."""
    x: Tensor
    """The latent after the step [B, C, h, w]."""
    x0: Tensor
    """The clean latent the step believed in [B, C, h, w]."""


OnStep = Callable[[Step], Tensor | None]
"""Called after each step; a tensor it returns takes the place of ``x`` (that is how inpainting is done)."""


def seeded_noise(seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Returns standard normal noise [len(seeds), *shape] float32, each image from its own seed.

    An image's noise depends on its seed alone: not on the batch, and, drawn on the CPU, not on the device.
    """
    return torch.stack([torch.randn(tuple(shape), generator=g) for g in _generators(seeds)]).to(device)


def seeded_step_noise(seeds: Sequence[int]) -> Noise:
    """Returns the noise of stochastic steps, each image from its own seed, going on after ``seeded_noise``.

    Raises:
        ValueError: when called with a batch of another size than there are seeds.
    """
    generators: list[torch.Generator] = []

    def noise(x: Tensor) -> Tensor:
        if len(x) != len(seeds):
            raise ValueError(f"got a batch of {len(x)} for {len(seeds)} seeds, expected one seed for each image")
        shape = tuple(x.shape[1:])
        if not generators:
            generators.extend(_generators(seeds))
            for generator in generators:
                torch.randn(shape, generator=generator)  # the noise that sampling starts from
        return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(x)

    return noise


def _generators(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


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
    """Returns the latent [B, C, h, w] by DDIM; the last step leads to ``alphas_cumprod[0]``, as in CompVis.

    Args:
        denoise: the denoiser.
        x: noise to start from [B, C, h, w].
        schedule: the noise schedule.
        steps: number of steps, or the times themselves, rising.
        eta: 0 is deterministic, 1 as stochastic as DDPM.
        noise: source of the noise, needed where eta is not 0.
        on_step: observer.

    Raises:
        ValueError: wrong steps, or eta without noise.

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

    With fewer than T steps it samples the shorter chain through the chosen times (Nichol & Dhariwal 2021).
    Arguments are those of ``ddim``: with eta = 1 its step is the posterior of Ho et al. 2020, equations 6 and
    7, written with the noise in place of x0.

    Raises:
        ValueError: wrong steps, or no noise.
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
    if eta and noise is None:
        raise ValueError(f"eta is {eta}, expected a source of noise with it; give noise=seeded_step_noise(seeds)")
    for index, t, t_next, level, level_next in _walk(schedule, steps, end):
        eps = denoise(x, _times(t, x))
        sigma = eta * math.sqrt((1 - level_next) / (1 - level) * (1 - level / level_next))
        x, x0 = _move(x, eps, level, level_next, sigma)
        if sigma and noise is not None:
            x = x + sigma * noise(x)
        x = _observe(on_step, Step(index, t, t_next, x, x0))
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
    """Returns the latent [B, C, h, w] by PLMS: DDIM steps along a linear multistep estimate of eps.

    The first step calls the denoiser twice. Arguments are those of ``ddim``; eta must be 0.

    Raises:
        ValueError: wrong steps, or eta is not 0.

    Source: Liu et al. 2022 (arXiv 2202.09778), equations 9, 12 and 13.
    """
    _require_deterministic("plms", eta)
    history: list[Tensor] = []
    for index, t, t_next, level, level_next in _walk(schedule, steps, None):
        eps = denoise(x, _times(t, x))
        if not history:
            guess, _ = _move(x, eps, level, level_next)
            mean = (eps + denoise(guess, _times(t_next or 0, x))) / 2
        elif len(history) == 1:
            mean = (3 * eps - history[-1]) / 2
        elif len(history) == 2:
            mean = (23 * eps - 16 * history[-1] + 5 * history[-2]) / 12
        else:
            mean = (55 * eps - 59 * history[-1] + 37 * history[-2] - 9 * history[-3]) / 24
        history = [*history[-2:], eps]
        x, x0 = _move(x, mean, level, level_next)
        x = _observe(on_step, Step(index, t, t_next, x, x0))
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
    """Returns the latent [B, C, h, w] by DPM-Solver++(2M), of second order in half the log signal-to-noise.

    One call of the denoiser a step; ends at ``alphas_cumprod[0]`` like DDIM. Arguments are those of ``ddim``;
    eta must be 0.

    Raises:
        ValueError: wrong steps, or eta is not 0.

    Source: Lu et al. 2022 (arXiv 2211.01095), algorithm 2.
    """
    _require_deterministic("dpmpp_2m", eta)
    x0_before: Tensor | None = None
    h_before = 0.0
    for index, t, t_next, level, level_next in _walk(schedule, steps, None):
        eps = denoise(x, _times(t, x))
        x0 = (x - math.sqrt(1 - level) * eps) / math.sqrt(level)
        h = (_log_snr(level_next) - _log_snr(level)) / 2
        mean = x0
        if x0_before is not None and h_before > 0:
            mean = x0 + (x0 - x0_before) * (h / (2 * h_before))
        x = math.sqrt((1 - level_next) / (1 - level)) * x - math.sqrt(level_next) * math.expm1(-h) * mean
        x0_before, h_before = x0, h
        x = _observe(on_step, Step(index, t, t_next, x, x0))
    return x


def clip_x0(denoise: Denoiser, schedule: NoiseSchedule, limit: float = 1.0) -> Denoiser:
    """Returns the denoiser whose eps means an x0 within [-limit, limit]: for images, which have a range."""

    def clipped(x: Tensor, t: Tensor) -> Tensor:
        x0 = schedule.x0_from_eps(x, denoise(x, t), t).clamp(-limit, limit)
        return schedule.eps_from_x0(x, x0, t)

    return clipped


SAMPLERS: dict[str, Callable[..., Tensor]] = {"ddim": ddim, "ddpm": ddpm, "plms": plms, "dpmpp_2m": dpmpp_2m}


def _walk(
    schedule: NoiseSchedule, steps: Steps, end: float | None
) -> Iterator[tuple[int, int, int | None, float, float]]:
    """Yields (index, t, t_next, level, level_next) from the noisiest time down."""
    times = schedule.timesteps(steps).tolist() if isinstance(steps, int) else [int(t) for t in steps]
    if not times or times != sorted(times) or times[0] < 0 or times[-1] >= len(schedule):
        raise ValueError(f"got the times {times}, expected rising ones in 0 ... {len(schedule) - 1}")
    here, there = (levels.tolist() for levels in schedule.sampling_levels(times, end))
    for index, place in enumerate(reversed(range(len(times)))):
        t_next = times[place - 1] if place else None
        yield index, times[place], t_next, here[place], there[place]


def _move(x: Tensor, eps: Tensor, level: float, level_next: float, sigma: float = 0.0) -> tuple[Tensor, Tensor]:
    """Returns x at the next level, before fresh noise of deviation sigma, and the x0 that eps implies."""
    x0 = (x - math.sqrt(1 - level) * eps) / math.sqrt(level)
    kept = math.sqrt(max(1 - level_next - sigma**2, 0.0))
    return math.sqrt(level_next) * x0 + kept * eps, x0


def _times(t: int, x: Tensor) -> Tensor:
    return torch.full((len(x),), t, dtype=torch.int64, device=x.device)


def _log_snr(level: float) -> float:
    return math.log(level / (1 - level))


def _observe(on_step: OnStep | None, step: Step) -> Tensor:
    changed = None if on_step is None else on_step(step)
    return step.x if changed is None else changed


def _require_deterministic(name: str, eta: float) -> None:
    if eta:
        raise ValueError(f"eta is {eta}, expected 0 for {name}; use ddim or ddpm for stochastic sampling")
