"""Loss of VQ first stages: reconstruction error, codebook loss, adversarial loss (Esser et al. 2021, eq. 3 to 7)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ldm.modules.losses.adversarial import AdversarialLoss, Log
from ldm.modules.quantize import perplexity


class VQLPIPSWithDiscriminator(AdversarialLoss):
    """Generator and discriminator loss of a VQ-GAN; all arguments but ``perceptual`` are CompVis' and taming's.

    Args:
        disc_start: generator step at which adversarial training starts.
        codebook_weight: weight of the codebook loss.
        n_classes: number of codes, with which :meth:`forward` logs how many of them are used.
        perceptual_loss: must be ``lpips``, CompVis' default. The network and its weights are given by ``perceptual``.
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
            raise ValueError(f"perceptual_loss: got '{perceptual_loss}', expected 'lpips'; set others in 'perceptual'")
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
        """Returns the same as CompVis' class, see :meth:`by_optimizer`."""
        others = codebook_loss.mean(), last_layer, global_step
        loss, log = self.by_optimizer(optimizer_idx, split, inputs, reconstructions, *others)
        if optimizer_idx == 0 and predicted_indices is not None and self.n_classes is not None:
            counts = torch.bincount(predicted_indices.flatten(), minlength=self.n_classes)
            log |= {f"{split}/perplexity": perplexity(counts), f"{split}/cluster_usage": (counts > 0).sum().float()}
        return loss, log

    def generator(
        self, images: Tensor, reconstructions: Tensor, codebook_loss: Tensor, last_layer: Tensor, step: int
    ) -> tuple[Tensor, Log]:
        """Returns the autoencoder's loss ``[]``, which includes the codebook loss ``[]``, and its parts."""
        distance, log = self.distance(images, reconstructions)
        nll = distance.mean()
        adversarial, more = self.fool(nll, reconstructions, last_layer, step)
        loss = nll + self.codebook_weight * codebook_loss + adversarial
        log |= more | {"quant_loss": codebook_loss.detach(), "nll_loss": nll.detach()}
        return loss, log | {"total_loss": loss.detach()}
