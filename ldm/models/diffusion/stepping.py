"""Parts that all samplers share: initial noise, iteration over the times, the DDIM step, and observers.

In the code, ``level`` is alphas_cumprod at the time where a step starts, and ``level_next`` where it ends.
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
"""x [B, C, h, w] -> standard normal noise of its shape and device; called once in each step that needs noise."""

Steps = int | Sequence[int]


@dataclass(frozen=True)
class Step:
    """The state of a sampler after a step, for its observer."""

    index: int
    """Number of the step, from 0."""
    t: int
    """The time at which the step started."""
    t_next: int | None
    """The time at which the step ended and the next one starts; None after the last step."""
    x: Tensor
    """The latent after the step [B, C, h, w]."""
    x0: Tensor
    """The step's estimate of the clean latent [B, C, h, w]."""


OnStep = Callable[[Step], Tensor | None]
"""Called after each step. If it returns a tensor, sampling continues with it in place of ``x``, as for inpainting."""


Watch = Callable[[int, int, Callable[[], Tensor]], object]
"""Called after each step with the number of steps that are done, that of all steps, and a preview.

The preview is a function that decodes the present estimate of the images to ``[B, C, H, W]`` in [-1, 1]. It costs
nothing unless it is called, which should be done before the watcher returns. Whatever the watcher raises ends sampling.
"""


def seeded_noise(seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Returns standard normal noise [len(seeds), *shape] float32, each image from its own seed.

    An image's noise depends on its seed alone, not on the batch. It is drawn on the CPU, so that it does not depend on
    the device.
    """
    return torch.stack([torch.randn(tuple(shape), generator=g) for g in _generators(seeds)]).to(device)


def seeded_step_noise(seeds: Sequence[int]) -> Noise:
    """Returns the noise source of stochastic steps, each image from its own seed; it continues after ``seeded_noise``.

    Raises:
        ValueError: the source is called with a batch whose size is not the number of seeds.
    """
    generators: list[torch.Generator] = []

    def noise(x: Tensor) -> Tensor:
        if len(x) != len(seeds):
            raise ValueError(f"got a batch of {len(x)} for {len(seeds)} seeds, expected one seed for each image")
        shape = tuple(x.shape[1:])
        if not generators:
            generators.extend(_generators(seeds))
            for generator in generators:
                torch.randn(shape, generator=generator)  # the same noise as in seeded_noise
        return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(x)

    return noise


def seeded_generator(seed: int, *numbers: int) -> torch.Generator:
    """Returns a CPU generator that depends on a seed and further numbers, such as step and device."""
    for number in numbers:
        seed = (seed * 1_000_003 + number + 1) % (1 << 62)
    return torch.Generator().manual_seed(seed)


def _generators(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


def walk(
    schedule: NoiseSchedule, steps: Steps, end: float | None
) -> Iterator[tuple[int, int, int | None, float, float]]:
    """Yields (index, t, t_next, level, level_next) for each step, from the noisiest time to the least noisy."""
    times = schedule.timesteps(steps).tolist() if isinstance(steps, int) else [int(t) for t in steps]
    if not times or times != sorted(times) or times[0] < 0 or times[-1] >= len(schedule):
        raise ValueError(f"got the times {times}, expected increasing times in 0 ... {len(schedule) - 1}")
    here, there = (levels.tolist() for levels in schedule.sampling_levels(times, end))
    for index, place in enumerate(reversed(range(len(times)))):
        t_next = times[place - 1] if place else None
        yield index, times[place], t_next, here[place], there[place]


def move(x: Tensor, eps: Tensor, level: float, level_next: float, sigma: float = 0.0) -> tuple[Tensor, Tensor]:
    """Returns x at the next level, to which noise of deviation sigma is still to be added, and the x0 of eps."""
    x0 = (x - math.sqrt(1 - level) * eps) / math.sqrt(level)
    kept = math.sqrt(max(1 - level_next - sigma**2, 0.0))
    return math.sqrt(level_next) * x0 + kept * eps, x0


def times_of(t: int, x: Tensor) -> Tensor:
    """Returns the time t for every image of x, ``[B] int64``."""
    return torch.full((len(x),), t, dtype=torch.int64, device=x.device)


def half_log_snr(level: float) -> float:
    """Returns lambda = log(sqrt(level) / sqrt(1 - level)), the variable in which high-order solvers integrate."""
    return math.log(level / (1 - level)) / 2


def observe(on_step: OnStep | None, step: Step) -> Tensor:
    """Calls the observer after a step, and returns the latent with which sampling continues."""
    changed = None if on_step is None else on_step(step)
    return step.x if changed is None else changed


def watched(
    watch: Watch | None,
    show: Callable[[Tensor], Tensor],
    steps: int,
    before: int = 0,
    on_step: OnStep | None = None,
) -> OnStep | None:
    """Returns the observer that tells a watcher of each step and then does what ``on_step`` does.

    Args:
        watch: the watcher; without one, ``on_step`` is returned as it is.
        show: decodes latents [B, C, h, w] for the preview.
        steps: number of all steps.
        before: number of steps before the first one that is observed.
        on_step: another observer, which may replace the latent.
    """
    if watch is None:
        return on_step

    def tell(step: Step) -> Tensor | None:
        watch(before + step.index + 1, steps, lambda: show(step.x0))
        return None if on_step is None else on_step(step)

    return tell


def require_deterministic(name: str, eta: float) -> None:
    """Raises ValueError if eta is not 0, for a deterministic sampler."""
    if eta:
        raise ValueError(f"eta is {eta}, expected 0 for {name}; use ddim, ddpm or dpmpp_2m_sde for stochastic sampling")


def require_noise(eta: float, noise: Noise | None) -> None:
    """Raises ValueError if eta is not 0 and there is no source of noise."""
    if eta and noise is None:
        raise ValueError(f"eta is {eta}, expected a source of noise with it; set noise=seeded_step_noise(seeds)")
