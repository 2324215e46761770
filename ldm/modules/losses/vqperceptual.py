"""Losses of the VQ first stage: reconstruction, codebook, perceptual, adversarial (Esser et al. 2021, eq. 3 to 7)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from taming.modules.discriminator.model import NLayerDiscriminator, weights_init
from taming.modules.losses.vqperceptual import hinge_d_loss, vanilla_d_loss
from torch import Tensor, nn

from ldm.util import instantiate_from_config

ADVERSARIAL = {"hinge": hinge_d_loss, "vanilla": vanilla_d_loss}


def codebook_statistics(indices: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Returns the perplexity of the code distribution and the number of codes in use, both ``[]``.

    Args:
        indices: int64, any shape.
        size: number of codes.
    """
    share = torch.bincount(indices.flatten(), minlength=size).float() / indices.numel()
    return (-(share * (share + 1e-10).log()).sum()).exp(), (share > 0).sum().float()


def adaptive_weight(nll: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """Returns the factor that gives both losses equal gradients at the decoder's last layer, in [0, 10^4]."""
    by_nll = torch.autograd.grad(nll, last_layer, retain_graph=True)[0].norm()
    by_adversarial = torch.autograd.grad(adversarial, last_layer, retain_graph=True)[0].norm()
    return (by_nll / (by_adversarial + 1e-4)).clamp(0.0, 1e4).detach()


class VQLPIPSWithDiscriminator(nn.Module):
    """Generator and discriminator loss of a VQ-GAN.

    Args:
        disc_start: generator step from which the discriminator takes part.
        codebook_weight: of the codebook loss.
        pixelloss_weight: of the L1 (or L2) loss.
        perceptual_weight: of the perceptual loss; above 0 it needs ``perceptual``.
        perceptual: config of a module ``(images, reconstructions) -> [B, 1, 1, 1]``.
        disc_num_layers, disc_in_channels, disc_ndf: size of the patch discriminator.
        disc_weight: of the adversarial loss, after the adaptive weight.
        disc_loss: ``hinge`` or ``vanilla``.
        pixel_loss: ``l1`` or ``l2``.
        n_classes: number of codes, for the statistics.
    """

    def __init__(
        self,
        disc_start: int,
        codebook_weight: float = 1.0,
        pixelloss_weight: float = 1.0,
        perceptual_weight: float = 0.0,
        perceptual: Mapping[str, Any] | None = None,
        disc_num_layers: int = 3,
        disc_in_channels: int = 3,
        disc_ndf: int = 64,
        disc_weight: float = 1.0,
        disc_loss: str = "hinge",
        pixel_loss: str = "l1",
        n_classes: int | None = None,
    ) -> None:
        super().__init__()
        if disc_loss not in ADVERSARIAL or pixel_loss not in ("l1", "l2"):
            raise ValueError(f"got disc_loss={disc_loss}, pixel_loss={pixel_loss}; expected hinge or vanilla, l1 or l2")
        if perceptual_weight > 0 and perceptual is None:
            raise ValueError(f"perceptual_weight is {perceptual_weight} but no perceptual network is configured")
        self.perceptual_loss = instantiate_from_config(perceptual).eval() if perceptual else None
        if self.perceptual_loss is not None:
            self.perceptual_loss.requires_grad_(False)
        self.discriminator = NLayerDiscriminator(disc_in_channels, disc_ndf, disc_num_layers).apply(weights_init)
        self.disc_start, self.disc_weight, self.disc_loss = disc_start, disc_weight, disc_loss
        self.codebook_weight, self.pixel_weight = codebook_weight, pixelloss_weight
        self.perceptual_weight, self.pixel_loss, self.n_classes = perceptual_weight, pixel_loss, n_classes

    def generator(
        self, images: Tensor, reconstructions: Tensor, codebook_loss: Tensor, last_layer: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the autoencoder's loss ``[]`` and its parts.

        Args:
            images: ``[B, 3, H, W]`` in [-1, 1].
            reconstructions: the same shape.
            codebook_loss: ``[]``.
            last_layer: the decoder's last weight, where gradients are balanced.
            step: number of generator steps taken.
        """
        distance = (images - reconstructions).abs() if self.pixel_loss == "l1" else (images - reconstructions).square()
        log = {"rec_loss": distance.detach().mean(), "quant_loss": codebook_loss.detach()}
        nll = self.pixel_weight * distance
        if self.perceptual_loss is not None:
            perceptual = self.perceptual_loss(images, reconstructions)
            nll = nll + self.perceptual_weight * perceptual
            log["p_loss"] = perceptual.detach().mean()
        nll = nll.mean()
        loss = nll + self.codebook_weight * codebook_loss
        if step >= self.disc_start:
            adversarial = -self.discriminator(reconstructions).mean()
            weight = self.disc_weight * (adaptive_weight(nll, adversarial, last_layer) if nll.requires_grad else 1.0)
            loss = loss + weight * adversarial
            log |= {"g_loss": adversarial.detach(), "d_weight": torch.as_tensor(weight)}
        return loss, log | {"nll_loss": nll.detach(), "total_loss": loss.detach()}

    def discriminate(self, images: Tensor, reconstructions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the discriminator's loss ``[]`` and the mean logits of real and reconstructed images."""
        real, fake = self.discriminator(images.detach()), self.discriminator(reconstructions.detach())
        loss = ADVERSARIAL[self.disc_loss](real, fake)
        log = {
            "disc_loss": loss.detach(),
            "logits_real": real.detach().mean(),
            "logits_fake": fake.detach().mean(),
        }
        return loss, log
