"""Loss of the VQ first stage: distance, codebook, adversarial (Esser et al. 2021, eq. 3 to 7)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ldm.modules.losses.adversarial import AdversarialLoss, Log
from ldm.modules.quantize import perplexity


class VQLPIPSWithDiscriminator(AdversarialLoss):
    """Generator and discriminator loss of a VQ-GAN; the arguments are CompVis' and taming's, and ``perceptual``.

    Args:
        disc_start: generator step from which the discriminator takes part.
        codebook_weight: of the codebook loss.
        n_classes: number of codes, for statistics of their use in CompVis' call.
        perceptual_loss: kind of network CompVis downloads; only ``lpips``, which ``perceptual`` names with its weights.
        options: the other arguments of :class:`AdversarialLoss`.
    """

    def __init__(
        self,
        disc_start: int,
        codebook_weight: float = 1.0,
        n_classes: int | None = None,
        perceptual_loss: str = "lpips",
        **options: Any,
    ) -> None:
        super().__init__(disc_start, **options)
        if perceptual_loss != "lpips":
            raise ValueError(f"perceptual_loss: got '{perceptual_loss}', expected 'lpips'; name others in 'perceptual'")
        self.codebook_weight, self.n_classes = codebook_weight, n_classes

    def forward(
        self,
        codebook_loss: Tensor,
        inputs: Tensor,
        reconstructions: Tensor,
        optimizer_idx: int,
        global_step: int,
        last_layer: Tensor,
        cond: None = None,  # noqa: ARG002 (CompVis' signature)
        split: str = "train",
        predicted_indices: Tensor | None = None,
    ) -> tuple[Tensor, Log]:
        """Returns what CompVis' call of this class returns, see :meth:`by_optimizer`."""
        others = codebook_loss.mean(), last_layer, global_step
        loss, log = self.by_optimizer(optimizer_idx, split, inputs, reconstructions, *others)
        if optimizer_idx == 0 and predicted_indices is not None and self.n_classes is not None:
            counts = torch.bincount(predicted_indices.flatten(), minlength=self.n_classes)
            log |= {f"{split}/perplexity": perplexity(counts), f"{split}/cluster_usage": (counts > 0).sum().float()}
        return loss, log

    def generator(
        self, images: Tensor, reconstructions: Tensor, codebook_loss: Tensor, last_layer: Tensor, step: int
    ) -> tuple[Tensor, Log]:
        """Returns the autoencoder's loss ``[]`` with that of the codebook ``[]``, and its parts."""
        distance, log = self.distance(images, reconstructions)
        nll = distance.mean()
        adversarial, more = self.fool(nll, reconstructions, last_layer, step)
        loss = nll + self.codebook_weight * codebook_loss + adversarial
        log |= more | {"quant_loss": codebook_loss.detach(), "nll_loss": nll.detach()}
        return loss, log | {"total_loss": loss.detach()}
