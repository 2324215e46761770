"""Editing: sampling that begins at a picture instead of noise, or keeps a part of it.

All here is about latents ``[B, C, h, w]`` and works with any sampler: it starts elsewhere, takes fewer steps, or has an
observer that puts the known part of the picture back after every step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    seeded_step_noise,
    times_of,
    walk,
)


@dataclass(frozen=True, eq=False)
class Edit:
    """A picture, and what of it is to stay.

    Attributes:
        latent: of the picture, ``[1, C, h, w]``.
        keep: ``[1, 1, h, w]``, 1 where the picture stays, 0 where it is painted anew; None paints all of it anew.
        strength: sampling begins at this share of all times, with the picture under their noise (Meng et al. 2022,
            SDEdit, arXiv 2108.01073): 0 leaves the picture as it is, 1 begins with noise alone, like any other sample.
        repeats: with ``keep``, how often each time is sampled, see :func:`keeping`; 1 is CompVis' inpainting.
        invert: begin at the noise that DDIM makes the picture from, see :func:`invert`, instead of random noise.
        context: what the model looks at while it inverts.
    """

    latent: Tensor
    keep: Tensor | None = None
    strength: float = 1.0
    repeats: int = 4
    invert: bool = False
    context: Any = None

    def begin(
        self, noise: Tensor, schedule: NoiseSchedule, times: Sequence[int], seeds: Sequence[int], denoise: Denoiser
    ) -> tuple[Tensor, list[int], OnStep | None]:
        """Returns where sampling starts ``[B, C, h, w]``, the times it takes, and its observer.

        Args:
            noise: that sampling starts from without a picture ``[B, C, h, w]``.
            schedule: the noise schedule.
            times: of sampling without a picture, rising. Where none is below ``strength``, none is left.
            seeds: one an image; the noise over the known part is a stream of its own.
            denoise: of the inversion, under ``context``.

        Raises:
            ValueError: an inversion that is to keep a part, a strength outside 0 to 1, or shapes that do not fit.
        """
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength is {self.strength}, expected a number from 0 to 1")
        if self.repeats < 1:
            raise ValueError(f"got {self.repeats} repeats, expected at least 1")
        if self.invert and self.keep is not None:
            raise ValueError(
                "got a mask for an inversion, which keeps the whole picture in its noise; give one of both"
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
            x = invert(denoise, self.latent, schedule, times).expand_as(noise)
        elif self.strength < 1:
            x = schedule.add_noise(picture, noise, times_of(times[-1], noise))
        if self.keep is None or not self.keep.any():
            return x, times, None
        fresh = seeded_step_noise([_child(seed) for seed in seeds])
        x = put_back(x, picture, self.keep, schedule, times[-1], fresh)
        times = [t for t in times for _ in range(self.repeats)]
        return x, times, keeping(picture, self.keep, schedule, times, fresh)


@torch.no_grad()
def invert(denoise: Denoiser, x0: Tensor, schedule: NoiseSchedule, steps: Steps, passes: int = 3) -> Tensor:
    """Returns the latent ``[B, C, h, w]`` at the last time from which ``ddim`` with these steps leads back to x0.

    A step of DDIM needs eps at its noisy end, which is what is looked for. A first pass takes eps at the end that is
    known (Song et al. 2021, equation 14, and section 4.3; the error then falls with the number of steps), each further
    one takes it where the pass before has led: a fixed point is an exact inverse (Pan et al. 2023, arXiv 2309.04907).

    Args:
        denoise: the denoiser; without guidance the passes converge best.
        x0: the latent of a picture.
        schedule: the noise schedule.
        steps: number of steps, or the times themselves, rising.
        passes: calls of the denoiser a step.

    Raises:
        ValueError: wrong steps, or passes.
    """
    if passes < 1:
        raise ValueError(f"got {passes} passes, expected at least 1")
    x = x0
    for _, t, t_next, level, level_next in reversed(list(walk(schedule, steps, None))):
        known, at = x, t_next or 0
        for _ in range(passes):
            x, _ = move(known, denoise(x, times_of(at, x)), level_next, level)
            at = t
    return x


def put_back(x: Tensor, known: Tensor, keep: Tensor, schedule: NoiseSchedule, t: int, noise: Noise) -> Tensor:
    """Returns x ``[B, C, h, w]`` with what is known of it in its place, under fresh noise of time t.

    Args:
        x: latent at time t.
        known: latent of the picture ``[B, C, h, w]``.
        keep: 1 where it is known, else 0 ``[B, 1, h, w]``.
        schedule: the noise schedule.
        t: the time.
        noise: source of the noise.

    Source: Lugmayr et al. 2022 (RePaint, arXiv 2201.09865), equation 8.
    """
    return schedule.add_noise(known, noise(x), times_of(t, x)) * keep + (1 - keep) * x


def keeping(known: Tensor, keep: Tensor, schedule: NoiseSchedule, times: Sequence[int], noise: Noise) -> OnStep:
    """Returns the observer that keeps the known part of a picture: at each step's noise, and clean after the last.

    Where a time comes several times, x is resampled in between: one ancestral step down and the diffusion back up
    (Lugmayr et al. 2022, section 4.2, with jumps of one step). What is painted and what is known then come to fit each
    other, where a single pass leaves them half strangers.

    Args:
        known: latent of the picture ``[B, C, h, w]``.
        keep: 1 where it is known, else 0 ``[B, 1, h, w]``.
        schedule: the noise schedule.
        times: of sampling, rising.
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
    """Returns x after a step of DDPM from the step's time to the level below it and the diffusion from there back."""
    level = float(schedule.alphas_cumprod[step.t])
    eps = (step.x - math.sqrt(level) * step.x0) / math.sqrt(1 - level)
    kept = level / below * (1 - below) / math.sqrt(1 - level)  # of eps; both together renew the rest
    return math.sqrt(level) * step.x0 + kept * eps + math.sqrt(max(1 - level - kept**2, 0.0)) * noise(step.x)


def _child(seed: int) -> int:
    """Returns the seed of a stream of its own."""
    return int(torch.randint(1 << 32, (), generator=torch.Generator().manual_seed(int(seed))))
