"""Loss of the KL first stage: likelihood of the image, divergence of the posterior, adversarial.

Rombach et al. 2022, appendix G; the likelihood is that of a Laplace distribution with one learnable scale.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.modules.losses.adversarial import AdversarialLoss, Log


class DummyLoss(nn.Module):
    """CompVis' name for no loss, in configs of first stages that are only used."""


class LPIPSWithDiscriminator(AdversarialLoss):
    """Generator and discriminator loss of a KL autoencoder; the arguments are CompVis', and ``perceptual``.

    Sums over pixels and latents and means over the batch, so ``kl_weight`` does not depend on their numbers.

    Args:
        disc_start: generator step from which the discriminator takes part.
        logvar_init: first value of the logarithm of the likelihood's scale.
        kl_weight: of the divergence from the standard normal.
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
        """Returns what CompVis' call of this class returns, see :meth:`by_optimizer`."""
        return self.by_optimizer(optimizer_idx, split, inputs, reconstructions, posteriors, last_layer, global_step)

    def generator(
        self,
        images: Tensor,
        reconstructions: Tensor,
        posterior: DiagonalGaussianDistribution,
        last_layer: Tensor,
        step: int,
    ) -> tuple[Tensor, Log]:
        """Returns the autoencoder's loss ``[]`` with the posterior's divergence, and its parts."""
        distance, log = self.distance(images, reconstructions)
        nll = (distance / self.logvar.exp() + self.logvar).sum() / len(images)
        kl = posterior.kl().mean()
        adversarial, more = self.fool(nll, reconstructions, last_layer, step)
        loss = nll + self.kl_weight * kl + adversarial
        log |= more | {"kl_loss": kl.detach(), "nll_loss": nll.detach(), "logvar": self.logvar.detach().clone()}
        return loss, log | {"total_loss": loss.detach()}
