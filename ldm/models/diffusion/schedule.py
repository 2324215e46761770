"""The noise schedule: the noise level of every time t, and the quantities that are computed from it.

x_t = sqrt(alphas_cumprod[t]) x_0 + sqrt(1 - alphas_cumprod[t]) eps  (Ho et al. 2020, equation 4).
Latents are [B, C, h, w] float, times t are [B] int64 in [0, T).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

PARAMETERIZATIONS = ("eps", "x0", "v")
SPACINGS = ("uniform", "trailing", "karras", "quad")
# The signal that counts as zero: so small that the image cannot be seen, but large enough as a divisor.
NO_SIGNAL = 2.0**-12


@dataclass(frozen=True, eq=False, repr=False)
class NoiseSchedule:
    """The values of ``alphas_cumprod``; all other quantities of the diffusion process are computed from them.

    Attributes:
        alphas_cumprod: [T], strictly decreasing in (0, 1), float64 on the CPU.
        v_posterior: the place of the variance of ancestral sampling between its lower bound (0), the variance of the
            posterior, and its upper bound (1), which is beta (Nichol & Dhariwal 2021, section 3.1, with CompVis'
            interpolation).
    """

    alphas_cumprod: Tensor
    v_posterior: float = 0.0
    _tables: dict[torch.device, Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Checks the values and converts them to float64 on the CPU.

        Raises:
            ValueError: the values are not strictly decreasing in (0, 1), or v_posterior is not from 0 to 1.
        """
        if not 0 <= self.v_posterior <= 1:
            raise ValueError(f"v_posterior is {self.v_posterior}, expected a number from 0 to 1")
        values = self.alphas_cumprod.detach().to("cpu", torch.float64)
        if values.ndim != 1 or len(values) == 0:
            raise ValueError(f"alphas_cumprod has shape {list(values.shape)}, expected [T]")
        if not (values[0] < 1 and values[-1] > 0 and bool((values.diff() < 0).all())):
            raise ValueError("alphas_cumprod is not strictly decreasing in (0, 1); check the betas")
        object.__setattr__(self, "alphas_cumprod", values)

    @classmethod
    def from_betas(cls, betas: Tensor) -> NoiseSchedule:
        """Returns the schedule with variances ``betas`` [T] of the individual steps."""
        return cls(torch.cumprod(1.0 - betas.to(torch.float64), dim=0))

    @classmethod
    def linear(cls, timesteps: int = 1000, start: float = 1e-4, end: float = 2e-2) -> NoiseSchedule:
        """Returns CompVis' "linear" schedule: square roots of the betas increase linearly from start to end."""
        betas = torch.linspace(start**0.5, end**0.5, timesteps, dtype=torch.float64).square()
        return cls.from_betas(betas)

    @classmethod
    def cosine(cls, timesteps: int = 1000, offset: float = 8e-3) -> NoiseSchedule:
        """Returns the cosine schedule (Nichol & Dhariwal 2021, equation 17), betas clipped at 0.999."""
        position = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
        level = torch.cos((position + offset) / (1 + offset) * math.pi / 2).square()
        return cls.from_betas((1 - level[1:] / level[:-1]).clamp(0, 0.999))

    @classmethod
    def from_name(
        cls,
        name: str = "linear",
        timesteps: int = 1000,
        linear_start: float = 1e-4,
        linear_end: float = 2e-2,
        cosine_s: float = 8e-3,
    ) -> NoiseSchedule:
        """Returns the schedule with the name in a config.

        Args:
            name: "linear" (square roots of the betas are linear in t), "cosine", "sqrt_linear" (betas are linear) or
                "sqrt" (betas are square roots of linear values); these names are CompVis'.
            timesteps: T.
            linear_start: first value of the linear ramp.
            linear_end: last value of the linear ramp.
            cosine_s: offset of the cosine schedule.

        Raises:
            ValueError: an unknown name, or the ramp is not between 0 and 1.
        """
        if not (0 < linear_start < 1 and 0 < linear_end < 1):
            got = f"linear_start={linear_start}, linear_end={linear_end}"
            raise ValueError(f"{got}: expected numbers between 0 and 1, such as 1e-4 and 2e-2")
        if name == "linear":
            return cls.linear(timesteps, linear_start, linear_end)
        if name == "cosine":
            return cls.cosine(timesteps, cosine_s)
        ramp = torch.linspace(linear_start, linear_end, timesteps, dtype=torch.float64)
        if name == "sqrt_linear":
            return cls.from_betas(ramp)
        if name == "sqrt":
            return cls.from_betas(ramp.sqrt())
        raise ValueError(f"beta_schedule is '{name}', expected linear, cosine, sqrt_linear or sqrt")

    def with_zero_terminal_snr(self, parameterization: str) -> NoiseSchedule:
        """Returns the schedule with zero signal at the last time, at which nothing of the image is left.

        The square roots of ``alphas_cumprod`` are shifted and scaled; the first one is kept. At the last time, models
        learn what they do not learn at other times, such as the mean colour of very dark images. Sampling has to start
        at the last time (``trailing`` spacing).

        Args:
            parameterization: of the model, ``v`` or ``x0``, because eps has no information on the image at zero signal.

        Raises:
            ValueError: the parameterization is ``eps``.

        Source: Lin et al. 2024 (arXiv 2305.08891), algorithm 1.
        """
        if parameterization == "eps":
            raise ValueError("zero_terminal_snr: got parameterization eps, expected v or x0")
        signal = self.alphas_cumprod.sqrt()
        scale = (signal[0] - NO_SIGNAL) / (signal[0] - signal[-1])
        return replace(self, alphas_cumprod=(NO_SIGNAL + (signal - signal[-1]) * scale).square())

    def __repr__(self) -> str:
        """Returns a description with T and the first and last value."""
        first, last = float(self.alphas_cumprod[0]), float(self.alphas_cumprod[-1])
        return f"NoiseSchedule(T={len(self)}, alphas_cumprod={first:.4g} ... {last:.4g})"

    def __len__(self) -> int:
        """Returns T."""
        return len(self.alphas_cumprod)

    def _signal_and_noise(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns sqrt(alphas_cumprod[t]) and sqrt(1 - alphas_cumprod[t]), shaped to broadcast over x."""
        if x.device not in self._tables:
            squares = torch.stack([self.alphas_cumprod, 1 - self.alphas_cumprod])
            self._tables[x.device] = squares.sqrt().float().to(x.device)
        signal, noise = (values[t].to(x.dtype) for values in self._tables[x.device])
        shape = (-1,) + (1,) * (x.ndim - 1)
        return signal.view(shape), noise.view(shape)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Returns x_t for x0 [B, C, h, w], standard normal noise of the same shape, and t [B]."""
        signal, sigma = self._signal_and_noise(t, x0)
        return signal * x0 + sigma * noise

    def x0_from_eps(self, x_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Returns the x0 for which ``add_noise`` with noise eps gives x_t; all [B, C, h, w], t [B]."""
        signal, sigma = self._signal_and_noise(t, x_t)
        return (x_t - sigma * eps) / signal

    def eps_from_x0(self, x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """Returns the noise for which ``add_noise`` to x0 gives x_t; all [B, C, h, w], t [B]."""
        signal, sigma = self._signal_and_noise(t, x_t)
        return (x_t - signal * x0) / sigma

    def target(self, parameterization: str, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Returns the prediction target of a model with this parameterization, [B, C, h, w].

        Args:
            parameterization: "eps", "x0", or "v" (Salimans & Ho 2022, appendix D).
            x0: clean latents [B, C, h, w].
            noise: the noise that is added to them, [B, C, h, w].
            t: [B].

        Raises:
            ValueError: an unknown parameterization.
        """
        check_parameterization(parameterization)
        if parameterization == "eps":
            return noise
        if parameterization == "x0":
            return x0
        signal, sigma = self._signal_and_noise(t, x0)
        return signal * noise - sigma * x0

    def to_eps(self, parameterization: str, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Returns the noise [B, C, h, w] for a model's output, which is an estimate of ``target``.

        Raises:
            ValueError: an unknown parameterization.
        """
        check_parameterization(parameterization)
        if parameterization == "eps":
            return output
        if parameterization == "x0":
            return self.eps_from_x0(x_t, output, t)
        signal, sigma = self._signal_and_noise(t, x_t)
        return signal * output + sigma * x_t

    def buffers(self) -> dict[str, Tensor]:
        """Returns the twelve float32 [T] tensors in CompVis' checkpoints, by their names there."""
        total = self.alphas_cumprod
        before = torch.cat([total.new_ones(1), total[:-1]])
        alphas = _ratios(total)
        betas = 1 - alphas
        variance = betas * ((1 - self.v_posterior) * (1 - before) / (1 - total) + self.v_posterior)
        values = {
            "betas": betas,
            "alphas_cumprod": total,
            "alphas_cumprod_prev": before,
            "sqrt_alphas_cumprod": total.sqrt(),
            "sqrt_one_minus_alphas_cumprod": (1 - total).sqrt(),
            "log_one_minus_alphas_cumprod": (1 - total).log(),
            "sqrt_recip_alphas_cumprod": total.rsqrt(),
            "sqrt_recipm1_alphas_cumprod": (1 / total - 1).sqrt(),
            "posterior_variance": variance,
            "posterior_log_variance_clipped": variance.clamp_min(1e-20).log(),
            "posterior_mean_coef1": betas * before.sqrt() / (1 - total),
            "posterior_mean_coef2": (1 - before) * alphas.sqrt() / (1 - total),
        }
        return {name: value.float() for name, value in values.items()}

    def lvlb_weights(self, parameterization: str = "eps") -> Tensor:
        """Returns the weights [T] float32 of the loss terms in CompVis' variational bound.

        For x0, the denominator is CompVis' (2 - alphas_cumprod), with which released models were trained.

        Raises:
            ValueError: the parameterization has no such weights.
        """
        buffers = self.buffers()
        betas, total = buffers["betas"], buffers["alphas_cumprod"]
        if parameterization == "eps":
            alphas = _ratios(self.alphas_cumprod).float()
            weights = betas.square() / (2 * buffers["posterior_variance"] * alphas * (1 - total))
        elif parameterization == "x0":
            weights = 0.5 * total.sqrt() / (2 - total)
        else:
            raise ValueError(f"parameterization is '{parameterization}', expected eps or x0 for these weights")
        weights[0] = weights[min(1, len(weights) - 1)]
        return weights

    def min_snr_weights(self, parameterization: str, gamma: float) -> Tensor:
        """Returns min-SNR weights [T] float32 of the squared error: relative to x0, no time has a weight above gamma.

        The squared error of eps is SNR = alphas_cumprod / (1 - alphas_cumprod) times that of x0, so that without these
        weights the least noisy times dominate the loss (Hang et al. 2023, arXiv 2303.09556, section 3.4).

        Raises:
            ValueError: an unknown parameterization, or gamma is not positive.
        """
        check_parameterization(parameterization)
        if not gamma > 0:
            raise ValueError(f"min_snr_gamma: got {gamma}, expected a positive number (5 in the paper), or null")
        snr = self.alphas_cumprod / (1 - self.alphas_cumprod)
        already = {"eps": snr, "x0": torch.ones_like(snr), "v": snr + 1}[parameterization]
        return (snr.clamp_max(gamma) / already).float()

    def timesteps(self, count: int, spacing: str = "uniform") -> Tensor:
        """Returns ``count`` increasing times for sampling, [count] int64.

        ============ ===============================================================================================
        ``uniform``  1, 1 + c, 1 + 2c ... (rounded down) for c = T / count, as in CompVis' code if count divides T; if
                     count is T, 0 ... T - 1
        ``trailing`` T - 1, T - 1 - c ..., counted from the other end (Lin et al. 2024, section 3.3)
        ``karras``   times nearest to the noise levels of Karras et al. 2022, equation 5, most of which are small;
                     equal times are returned once, so that there can be fewer than ``count``
        ``quad``     CompVis' quadratic spacing up to 0.8 T, which can repeat times
        ============ ===============================================================================================

        Args:
            count: number of steps.
            spacing: a name in the table.

        Raises:
            ValueError: a count outside 1 ... T, or an unknown spacing.
        """
        total = len(self)
        if not 1 <= count <= total:
            raise ValueError(f"got {count} sampling steps, expected 1 to {total}")
        if spacing not in SPACINGS:
            raise ValueError(f"spacing is '{spacing}', expected {', '.join(SPACINGS)}")
        places = torch.arange(count, dtype=torch.float64)
        if spacing == "quad":
            roots = torch.linspace(0, (0.8 * total) ** 0.5, count, dtype=torch.float64)
            return (roots.square().long() + 1).clamp_max(total - 1)
        if spacing == "trailing":
            return (total - places * total / count).round().long().flip(0) - 1
        if spacing == "karras":
            noise = (1 / self.alphas_cumprod[min(1, total - 1) :] - 1).sqrt()  # relative to the signal, as in the paper
            last, first = noise[-1] ** (1 / 7), noise[0] ** (1 / 7)
            wanted = (last + places / max(count - 1, 1) * (first - last)) ** 7
            nearest = (noise.log() - wanted.log()[:, None]).abs().argmin(dim=1)
            return (nearest + min(1, total - 1)).unique()
        times = torch.arange(count) * total // count
        return times if count == total else times + 1

    def sampling_levels(self, times: Sequence[int] | Tensor, end: float | None = None) -> tuple[Tensor, Tensor]:
        """Returns alphas_cumprod at each of the times, and at the time to which a step from there leads.

        Args:
            times: increasing times [S].
            end: the level to which the step from the first time leads, which is the last step of sampling. By default,
                it is ``alphas_cumprod[0]``, and all levels are rounded to float32, the precision of checkpoints, and
                kept above zero, as in CompVis' DDIM and in diffusers. With a level, as in ancestral sampling, none is
                rounded: at the least noisy times, 1 - alphas_cumprod would lose most of its digits.

        Returns:
            Two [S] float64 tensors.
        """
        levels = self.alphas_cumprod
        if end is None:
            levels = levels.float().clamp_min(torch.finfo(torch.float32).tiny).double()
        here = levels[torch.as_tensor(times, dtype=torch.int64)]
        last = levels[:1] if end is None else levels.new_tensor([end])
        return here, torch.cat([last, here[:-1]])


def _ratios(values: Tensor) -> Tensor:
    """Returns the ratio of each value [T] to the one before it; the first value is returned unchanged."""
    return torch.cat([values[:1], values[1:] / values[:-1]])


def check_parameterization(name: str) -> None:
    """Checks the name of a parameterization.

    Raises:
        ValueError: an unknown name.
    """
    if name not in PARAMETERIZATIONS:
        raise ValueError(f"parameterization is '{name}', expected one of {', '.join(PARAMETERIZATIONS)}")
