"""Loss of the VQ first stage: distance, codebook, adversarial (Esser et al. 2021, eq. 3 to 7)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm.modules.losses.adversarial import AdversarialLoss, Log, refuse_conditional


def codebook_statistics(indices: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Returns the perplexity of the code distribution and the number of codes in use, both ``[]``.

    Args:
        indices: int64, any shape.
        size: number of codes.
    """
    share = torch.bincount(indices.flatten(), minlength=size).float() / indices.numel()
    return (-(share * (share + 1e-10).log()).sum()).exp(), (share > 0).sum().float()


class VQLPIPSWithDiscriminator(AdversarialLoss):
    """Generator and discriminator loss of a VQ-GAN; the arguments are CompVis' and taming's, and ``perceptual``.

    Args:
        disc_start: see :class:`AdversarialLoss`, as all that is not named here.
        codebook_weight: of the codebook loss.
        disc_conditional: must be false.
        n_classes: number of codes; taken for CompVis' configs, as the model knows it.
        perceptual_loss: kind of network CompVis downloads; only ``lpips``, which ``perceptual`` names with its weights.
    """

    def __init__(
        self,
        disc_start: int,
        codebook_weight: float = 1.0,
        pixelloss_weight: float = 1.0,
        disc_num_layers: int = 3,
        disc_in_channels: int = 3,
        disc_factor: float = 1.0,
        disc_weight: float = 1.0,
        perceptual_weight: float | None = None,
        use_actnorm: bool = False,
        disc_conditional: bool = False,
        disc_ndf: int = 64,
        disc_loss: str = "hinge",
        n_classes: int | None = None,
        perceptual_loss: str = "lpips",
        pixel_loss: str = "l1",
        perceptual: Mapping[str, Any] | nn.Module | None = None,
    ) -> None:
        refuse_conditional(disc_conditional)
        if perceptual_loss != "lpips":
            raise ValueError(f"perceptual_loss: got '{perceptual_loss}', expected 'lpips'; name others in 'perceptual'")
        super().__init__(
            disc_start,
            pixelloss_weight=pixelloss_weight,
            perceptual_weight=perceptual_weight,
            perceptual=perceptual,
            disc_num_layers=disc_num_layers,
            disc_in_channels=disc_in_channels,
            disc_ndf=disc_ndf,
            use_actnorm=use_actnorm,
            disc_factor=disc_factor,
            disc_weight=disc_weight,
            disc_loss=disc_loss,
            pixel_loss=pixel_loss,
        )
        self.codebook_weight, self.n_classes = codebook_weight, n_classes

    def generator(
        self, images: Tensor, reconstructions: Tensor, codebook_loss: Tensor, last_layer: Tensor, step: int
    ) -> tuple[Tensor, Log]:
        """Returns the autoencoder's loss ``[]`` and its parts.

        Args:
            images: ``[B, 3, H, W]`` in [-1, 1].
            reconstructions: the same shape.
            codebook_loss: ``[]``.
            last_layer: the decoder's last weight, where gradients are balanced.
            step: number of generator steps taken.
        """
        distance, log = self.distance(images, reconstructions)
        nll = distance.mean()
        adversarial, more = self.fool(nll, reconstructions, last_layer, step)
        loss = nll + self.codebook_weight * codebook_loss + adversarial
        log |= more | {"quant_loss": codebook_loss.detach(), "nll_loss": nll.detach()}
        return loss, log | {"total_loss": loss.detach()}
