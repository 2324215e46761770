"""The posterior of a KL autoencoder."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class DiagonalGaussianDistribution:
    """Normal distribution over latents, independent in every element.

    Args:
        parameters: [B, 2C, h, w]: means, then logarithms of variances (clamped to [-30, 20]).
        deterministic: use a variance of zero, so that samples are the mean.
    """

    def __init__(self, parameters: Tensor, deterministic: bool = False) -> None:
        self.parameters = parameters
        self.deterministic = deterministic
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)
        self.std = torch.zeros_like(self.mean) if deterministic else torch.exp(0.5 * self.logvar)
        self.var = self.std.square() if deterministic else self.logvar.exp()

    def sample(self, noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Returns mean + std * noise, [B, C, h, w].

        Args:
            noise: standard normal noise [B, C, h, w]; by default it is drawn here.
            generator: generator for the noise, which is drawn on the generator's device; by default torch's own.
        """
        if noise is None:
            device = self.mean.device if generator is None else generator.device
            noise = torch.randn(self.mean.shape, generator=generator, device=device)
        return self.mean + self.std * noise.to(self.mean)

    def mode(self) -> Tensor:
        """Returns the mean [B, C, h, w]."""
        return self.mean

    def kl(self, other: DiagonalGaussianDistribution | None = None) -> Tensor:
        """Returns the KL divergence [B] in nats from ``other``, by default from the standard normal distribution."""
        if self.deterministic:
            return torch.zeros(len(self.mean), device=self.mean.device)
        if other is None:
            terms = self.mean.square() + self.var - 1.0 - self.logvar
        else:
            distance = (self.mean - other.mean).square() / other.var
            terms = distance + self.var / other.var - 1.0 - self.logvar + other.logvar
        return 0.5 * terms.flatten(1).sum(1)

    def nll(self, sample: Tensor, dims: Sequence[int] = (1, 2, 3)) -> Tensor:
        """Returns the negative log-likelihood of a sample [B, C, h, w] in nats, summed over ``dims``."""
        if self.deterministic:
            return torch.zeros(len(self.mean), device=self.mean.device)
        terms = math.log(2.0 * math.pi) + self.logvar + (sample - self.mean).square() / self.var
        return 0.5 * terms.sum(dim=tuple(dims))
