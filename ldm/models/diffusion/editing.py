"""Image-to-image and inpainting: sampling that starts from a picture, or keeps a part of a picture.

The functions here use latents ``[B, C, h, w]`` and work with any sampler. They change where sampling starts and which
times it takes, and add an observer that restores the known part of the picture after every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm.models.diffusion.schedule import NoiseSchedule
from ldm.models.diffusion.stepping import (
    Denoiser,
    Noise,
    OnStep,
    Step,
    Steps,
    move,
    observe,
    seeded_step_noise,
    times_of,
    walk,
)


@dataclass(frozen=True, eq=False)
class Edit:
    """A picture, and options for image-to-image or inpainting with it.

    Attributes:
        latent: latent of the picture, ``[1, C, h, w]``.
        keep: the mask ``[1, 1, h, w]``, 1 where the picture is kept, 0 where it is repainted; None repaints all of it.
        strength: sampling starts at this fraction of all times, from the picture with the noise of that time (SDEdit,
            Meng et al. 2022, arXiv 2108.01073). With 0, the picture is unchanged; with 1, sampling starts from noise.
        repeats: with ``keep``, how often each time is sampled, see :func:`keeping`; 1 is CompVis' inpainting.
        invert: start from the noise that DDIM inversion computes for the picture instead of random noise, see
            :func:`invert`.
        context: the condition of the model during inversion.
    """

    latent: Tensor
    keep: Tensor | None = None
    strength: float = 1.0
    repeats: int = 4
    invert: bool = False
    context: Any = None

    def begin(
        self,
        noise: Tensor,
        schedule: NoiseSchedule,
        times: Sequence[int],
        seeds: Sequence[int],
        denoise: Denoiser,
        watching: Callable[[int], OnStep | None] = lambda _: None,
    ) -> tuple[Tensor, list[int], OnStep | None]:
        """Returns the latent at which sampling starts ``[B, C, h, w]``, its times, and its observer.

        Args:
            noise: the noise from which sampling without a picture would start ``[B, C, h, w]``.
            schedule: the noise schedule.
            times: increasing times of sampling without a picture. Only those below ``strength`` are returned, which can
                be none.
            seeds: one for each image. The noise of the known part has generators of its own.
            denoise: the denoiser for the inversion, with ``context``.
            watching: returns the observer of the inversion, given the number of steps that inversion and sampling take
                together.

        Raises:
            ValueError: an inversion with a mask, a strength outside 0 to 1, or shapes that do not fit.
        """
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength is {self.strength}, expected a number from 0 to 1")
        if self.repeats < 1:
            raise ValueError(f"got {self.repeats} repeats, expected at least 1")
        if self.invert and self.keep is not None:
            raise ValueError(
                "got a mask with an inversion, which starts from noise of the whole picture; use only one of the two"
            )
        for what, got, expected in (
            ("latent of the picture", self.latent, [1, *noise.shape[1:]]),
            ("mask", self.latent[:, :1] if self.keep is None else self.keep, [1, 1, *noise.shape[2:]]),
        ):
            if list(got.shape) != expected:
                raise ValueError(f"{what} has shape {list(got.shape)}, expected {expected}")
        picture, times = self.latent.expand_as(noise), [t for t in times if t < self.strength * len(schedule)]
        if not times:
            return picture, times, None
        x = noise
        if self.invert:
            x = invert(denoise, self.latent, schedule, times, on_step=watching(2 * len(times))).expand_as(noise)
        elif self.strength < 1:
            x = schedule.add_noise(picture, noise, times_of(times[-1], noise))
        if self.keep is None or not self.keep.any():
            return x, times, None
        fresh = seeded_step_noise([_child(seed) for seed in seeds])
        x = put_back(x, picture, self.keep, schedule, times[-1], fresh)
        times = [t for t in times for _ in range(self.repeats)]
        return x, times, keeping(picture, self.keep, schedule, times, fresh)


@torch.no_grad()
def invert(
    denoise: Denoiser,
    x0: Tensor,
    schedule: NoiseSchedule,
    steps: Steps,
    passes: int = 3,
    on_step: OnStep | None = None,
) -> Tensor:
    """Returns the latent ``[B, C, h, w]`` at the last time from which ``ddim`` with these steps leads back to x0.

    To invert a DDIM step, one needs eps at its noisy end, which is not known yet. The first pass takes eps at the known
    end instead (Song et al. 2021, equation 14 and section 4.3); its error decreases with the number of steps. Each
    further pass takes eps at the result of the pass before. A fixed point of this iteration is the exact inverse (Pan
    et al. 2023, arXiv 2309.04907).

    Args:
        denoise: the denoiser; the passes converge best without guidance.
        x0: the latent of a picture.
        schedule: the noise schedule.
        steps: number of steps, or a list of increasing times.
        passes: number of calls of the denoiser in each step.
        on_step: observer, called after each step, from the least noisy time to the noisiest.

    Raises:
        ValueError: wrong steps, or a number of passes below 1.
    """
    if passes < 1:
        raise ValueError(f"got {passes} passes, expected at least 1")
    x = x0
    for index, (_, t, t_next, level, level_next) in enumerate(reversed(list(walk(schedule, steps, None)))):
        known, at, estimate = x, t_next or 0, x0
        for _ in range(passes):
            x, estimate = move(known, denoise(x, times_of(at, x)), level_next, level)
            at = t
        x = observe(on_step, Step(index, t, t_next, x, estimate))
    return x


def put_back(x: Tensor, known: Tensor, keep: Tensor, schedule: NoiseSchedule, t: int, noise: Noise) -> Tensor:
    """Returns x ``[B, C, h, w]`` with its known part replaced by that of the picture, with new noise of time t.

    Args:
        x: latent at time t.
        known: latent of the picture ``[B, C, h, w]``.
        keep: the mask ``[B, 1, h, w]``, 1 in the known part and 0 elsewhere.
        schedule: the noise schedule.
        t: the time.
        noise: source of the noise.

    Source: Lugmayr et al. 2022 (RePaint, arXiv 2201.09865), equation 8.
    """
    return schedule.add_noise(known, noise(x), times_of(t, x)) * keep + (1 - keep) * x


def keeping(known: Tensor, keep: Tensor, schedule: NoiseSchedule, times: Sequence[int], noise: Noise) -> OnStep:
    """Returns the observer that restores the known part of a picture after each step.

    The known part gets the noise of the next time, and none after the last step. If a time is repeated, x is resampled
    between its repetitions: one ancestral step to the time below, and diffusion back (Lugmayr et al. 2022, section 4.2,
    with jumps of one step). After several repetitions, the repainted part fits the known part better than after one.

    Args:
        known: latent of the picture ``[B, C, h, w]``.
        keep: the mask ``[B, 1, h, w]``, 1 in the known part and 0 elsewhere.
        schedule: the noise schedule.
        times: increasing times of sampling.
        noise: source of the noise.
    """
    distinct = sorted(set(times))
    below = dict(zip(distinct, (0, *distinct), strict=False))

    def on_step(step: Step) -> Tensor:
        if step.t_next is None:
            return known * keep + (1 - keep) * step.x
        x = step.x
        if step.t_next == step.t:
            x = _resampled(step, float(schedule.alphas_cumprod[below[step.t]]), schedule, noise)
        return put_back(x, known, keep, schedule, step.t_next, noise)

    return on_step


def _resampled(step: Step, below: float, schedule: NoiseSchedule, noise: Noise) -> Tensor:
    """Returns x after a DDPM step from the step's time to the level ``below`` and diffusion from there back."""
    level = float(schedule.alphas_cumprod[step.t])
    eps = (step.x - math.sqrt(level) * step.x0) / math.sqrt(1 - level)
    kept = level / below * (1 - below) / math.sqrt(1 - level)  # factor of eps; the rest is new noise
    return math.sqrt(level) * step.x0 + kept * eps + math.sqrt(max(1 - level - kept**2, 0.0)) * noise(step.x)


def _child(seed: int) -> int:
    """Returns the seed of a separate generator, derived from a seed."""
    return int(torch.randint(1 << 32, (), generator=torch.Generator().manual_seed(int(seed))))
