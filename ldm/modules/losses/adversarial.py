"""The base class of the first stages' losses: reconstruction error, patch discriminator, and the balance of the two.

Esser et al. 2021, equations 5 to 7. Images and reconstructions are ``[B, 3, H, W]`` in [-1, 1].
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from taming.modules.discriminator.model import NLayerDiscriminator, weights_init
from taming.modules.losses.vqperceptual import hinge_d_loss, vanilla_d_loss
from torch import Tensor, nn

from ldm.modules.losses.perceptual import perceptual_network
from ldm.parallel import mean

ADVERSARIAL = {"hinge": hinge_d_loss, "vanilla": vanilla_d_loss}
Log = dict[str, Tensor]


def adaptive_weight(nll: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """Returns the factor in [0, 10^4] that gives both losses equal gradient norms at the decoder's last layer.

    The losses are means over the samples of this process; the gradients are those of the whole batch.
    """
    by_nll = mean(torch.autograd.grad(nll, last_layer, retain_graph=True)[0]).norm()
    by_adversarial = mean(torch.autograd.grad(adversarial, last_layer, retain_graph=True)[0]).norm()
    return (by_nll / (by_adversarial + 1e-4)).clamp(0.0, 1e4).detach()


class AdversarialLoss(nn.Module):
    """Reconstruction error, discriminator and their weights; a subclass adds the term of its bottleneck.

    Args:
        disc_start: generator step at which adversarial training starts.
        pixelloss_weight: weight of the L1 (or L2) distance.
        disc_num_layers: number of layers of the patch discriminator.
        disc_in_channels: number of input channels of the patch discriminator.
        disc_factor: factor of both adversarial losses.
        disc_weight: weight of the generator's adversarial loss, which also has the adaptive weight.
        perceptual_weight: weight of the perceptual distance; ``None`` means 1 with a network for it and 0 without.
        use_actnorm: normalise the discriminator's layers by the statistics of the first batch, not of every batch.
        disc_conditional: must be false, because the image is the discriminator's only input.
        disc_ndf: width of the patch discriminator's first layer.
        disc_loss: ``hinge`` or ``vanilla``.
        pixel_loss: ``l1`` or ``l2``.
        perceptual: a module ``(images, reconstructions) -> [B, 1, 1, 1]``, its config, or a list of configs. Of a
            list, the first network whose weights can be loaded is used.

    Raises:
        ValueError: an unknown loss, a perceptual weight without a network, or a conditional discriminator.
    """

    def __init__(
        self,
        disc_start: int,
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
        pixel_loss: str = "l1",
        perceptual: Mapping[str, Any] | Sequence[Mapping[str, Any]] | nn.Module | None = None,
    ) -> None:
        super().__init__()
        if disc_loss not in ADVERSARIAL or pixel_loss not in ("l1", "l2"):
            raise ValueError(f"got disc_loss={disc_loss}, pixel_loss={pixel_loss}; expected hinge or vanilla, l1 or l2")
        if disc_conditional:
            raise ValueError("disc_conditional: got true, expected false; the discriminator has no input but the image")
        if perceptual_weight and perceptual is None:
            raise ValueError(
                f"perceptual_weight is {perceptual_weight} but no perceptual network is configured; name one in "
                "'perceptual', e.g. ldm.modules.losses.lpips.LPIPS with its weights or "
                "ldm.modules.losses.perceptual.ClipDistance, or set the weight to 0"
            )
        given = perceptual is None or isinstance(perceptual, nn.Module)
        network: Any = perceptual if given else perceptual_network(perceptual)  # type: ignore[arg-type]
        self.perceptual_loss: nn.Module | None = None if network is None else network.eval().requires_grad_(False)
        self.perceptual_weight = 1.0 if perceptual_weight is None else perceptual_weight
        self.discriminator = NLayerDiscriminator(disc_in_channels, disc_ndf, disc_num_layers, use_actnorm=use_actnorm)
        self.discriminator.apply(weights_init)
        self.disc_start, self.disc_loss = disc_start, disc_loss
        self.disc_factor, self.disc_weight = disc_factor, disc_weight
        self.pixel_weight, self.pixel_loss = pixelloss_weight, pixel_loss

    def train(self, mode: bool = True) -> AdversarialLoss:
        """Sets the mode of all modules except the perceptual network, which is not trained."""
        super().train(mode)
        if self.perceptual_loss is not None:
            self.perceptual_loss.eval()
        return self

    def describe(self) -> str:
        """Returns a description of the distances and weights that compare a reconstruction with its image."""
        words = f"{self.pixel_loss} x {self.pixel_weight:g}"
        if self.perceptual_loss is None:
            return f"{words}, no perceptual network"
        name = getattr(self.perceptual_loss, "name", type(self.perceptual_loss).__name__)
        return f"{words}, {name} x {self.perceptual_weight:g}"

    @abstractmethod
    def generator(
        self, images: Tensor, reconstructions: Tensor, beside: Any, last_layer: Tensor, step: int
    ) -> tuple[Tensor, Log]:
        """Returns the autoencoder's loss ``[]`` and its parts.

        Args:
            images: ``[B, 3, H, W]`` in [-1, 1].
            reconstructions: the same shape.
            beside: the bottleneck's codebook loss ``[]``, or the posterior of the latents.
            last_layer: the decoder's last weight, at which gradients are balanced.
            step: number of generator steps so far.
        """

    def by_optimizer(
        self, optimizer_idx: int, split: str, images: Tensor, reconstructions: Tensor, *others: Any
    ) -> tuple[Tensor, Log]:
        """Returns the loss of one of the two optimisers, as in CompVis' trainers, and its parts under ``split/``."""
        if optimizer_idx == 0:
            loss, log = self.generator(images, reconstructions, *others)
        else:
            loss, log = self.discriminate(images, reconstructions)
            started = others[-1] >= self.disc_start
            loss, log["disc_loss"] = loss * started, log["disc_loss"] * started
        return loss, {f"{split}/{name}": value for name, value in log.items()}

    def distance(self, images: Tensor, reconstructions: Tensor) -> tuple[Tensor, Log]:
        """Returns the weighted distance ``[B, 3, H, W]`` and its parts."""
        difference = images - reconstructions
        distance = self.pixel_weight * (difference.abs() if self.pixel_loss == "l1" else difference.square())
        log = {}
        if self.perceptual_loss is not None and self.perceptual_weight > 0:
            perceptual = self.perceptual_loss(images, reconstructions)
            distance = distance + self.perceptual_weight * perceptual
            log["p_loss"] = perceptual.detach().mean()
        return distance, log | {"rec_loss": distance.detach().mean()}

    def fool(self, nll: Tensor, reconstructions: Tensor, last_layer: Tensor, step: int) -> tuple[Tensor | float, Log]:
        """Returns the generator's weighted adversarial loss ``[]``, which is 0 before ``disc_start``, and its parts.

        Args:
            nll: the loss ``[]`` with which the adversarial loss is balanced.
            reconstructions: ``[B, 3, H, W]``.
            last_layer: the decoder's last weight, at which gradients are balanced.
            step: number of generator steps so far.
        """
        if step < self.disc_start:
            return 0.0, {}
        adversarial = -self.discriminator(reconstructions).mean()
        # Without gradients there is no balance to compute. CompVis' validation leaves the adversarial loss out as well.
        balance = adaptive_weight(nll, adversarial, last_layer) if nll.requires_grad else torch.zeros_like(nll)
        weight = self.disc_weight * balance
        return weight * self.disc_factor * adversarial, {"g_loss": adversarial.detach(), "d_weight": weight}

    def discriminate(self, images: Tensor, reconstructions: Tensor) -> tuple[Tensor, Log]:
        """Returns the discriminator's loss ``[]`` and the mean logits of real and reconstructed images."""
        real, fake = self.discriminator(images.detach()), self.discriminator(reconstructions.detach())
        loss = self.disc_factor * ADVERSARIAL[self.disc_loss](real, fake)
        return loss, {
            "disc_loss": loss.detach(),
            "logits_real": real.detach().mean(),
            "logits_fake": fake.detach().mean(),
        }
