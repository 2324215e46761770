"""Loss of KL first stages: likelihood of the image, KL divergence of the posterior, and adversarial loss.

Rombach et al. 2022, appendix G; the likelihood is that of a Laplace distribution with one learnable scale.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.modules.losses.adversarial import AdversarialLoss, Log


class DummyLoss(nn.Module):
    """CompVis' class for the loss of a first stage that is not trained; it computes nothing."""


class LPIPSWithDiscriminator(AdversarialLoss):
    """Generator and discriminator loss of a KL autoencoder; all arguments but ``perceptual`` are CompVis'.

    Likelihood and divergence are sums over pixels and latents, and means over the batch, so that ``kl_weight`` does not
    depend on the number of pixels, latents or images.

    Args:
        disc_start: generator step at which adversarial training starts.
        logvar_init: initial logarithm of the likelihood's scale.
        kl_weight: weight of the KL divergence from the standard normal distribution.
        options: the other arguments of :class:`AdversarialLoss`.
    """

    def __init__(self, disc_start: int, logvar_init: float = 0.0, kl_weight: float = 1.0, **options: Any) -> None:
        super().__init__(disc_start, **options)
        self.kl_weight = kl_weight
        self.logvar = nn.Parameter(torch.tensor(float(logvar_init)))

    def forward(
        self,
        inputs: Tensor,
        reconstructions: Tensor,
        posteriors: DiagonalGaussianDistribution,
        optimizer_idx: int,
        global_step: int,
        last_layer: Tensor,
        cond: None = None,  # noqa: ARG002 (CompVis' signature)
        split: str = "train",
    ) -> tuple[Tensor, Log]:
        """Returns the same as CompVis' class, see :meth:`by_optimizer`."""
        return self.by_optimizer(optimizer_idx, split, inputs, reconstructions, posteriors, last_layer, global_step)

    def generator(
        self,
        images: Tensor,
        reconstructions: Tensor,
        posterior: DiagonalGaussianDistribution,
        last_layer: Tensor,
        step: int,
    ) -> tuple[Tensor, Log]:
        """Returns the autoencoder's loss ``[]``, which includes the posterior's KL divergence, and its parts."""
        distance, log = self.distance(images, reconstructions)
        nll = (distance / self.logvar.exp() + self.logvar).sum() / len(images)
        kl = posterior.kl().mean()
        adversarial, more = self.fool(nll, reconstructions, last_layer, step)
        loss = nll + self.kl_weight * kl + adversarial
        log |= more | {"kl_loss": kl.detach(), "nll_loss": nll.detach(), "logvar": self.logvar.detach().clone()}
        return loss, log | {"total_loss": loss.detach()}
