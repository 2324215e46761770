"""The autoencoder's normal posterior against torch.distributions."""

import torch
from torch.distributions import Normal, kl_divergence

from ldm.modules.distributions.distributions import DiagonalGaussianDistribution


def posterior(seed: int) -> DiagonalGaussianDistribution:
    return DiagonalGaussianDistribution(torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(seed)))


def test_divergence_and_likelihood_are_the_textbook_ones() -> None:
    first, second = posterior(0), posterior(1)
    normal, other = Normal(first.mean, first.std), Normal(second.mean, second.std)
    zero = torch.zeros(2, 3, 4, 4)
    standard = kl_divergence(normal, Normal(zero, zero + 1)).sum((1, 2, 3))
    torch.testing.assert_close(first.kl(), standard)
    torch.testing.assert_close(first.kl(second), kl_divergence(normal, other).sum((1, 2, 3)))
    torch.testing.assert_close(first.nll(zero), -normal.log_prob(zero).sum((1, 2, 3)))


def test_samples_follow_the_noise_or_the_generator() -> None:
    dist, noise = posterior(0), torch.full((2, 3, 4, 4), 2.0)
    assert torch.equal(dist.sample(noise), dist.mean + 2 * dist.std)
    drawn = [dist.sample(generator=torch.Generator().manual_seed(7)) for _ in range(2)]
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(dist.mode(), dist.parameters[:, :3])


def test_deterministic_has_no_spread() -> None:
    dist = DiagonalGaussianDistribution(torch.randn(2, 6, 4, 4), deterministic=True)
    assert torch.equal(dist.sample(), dist.mean)
    assert torch.equal(dist.kl(), torch.zeros(2))
    assert torch.equal(dist.nll(dist.mean), torch.zeros(2))


def test_variance_is_clamped() -> None:
    dist = DiagonalGaussianDistribution(torch.tensor([0.0, 100.0]).view(1, 2, 1, 1))
    assert float(dist.logvar) == 20.0
