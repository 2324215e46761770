"""The network that folds the latents of the neighbours into channels for the U-Net. Part of an exported folder."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn


class ReferenceEncoder(ModelMixin, ConfigMixin):
    """Folds any number of references, in any order, into their mean, their deviation and F learned channels.

    A reference of zeros is absent.

    Args:
        channels: channels C of a latent.
        width: number F of learned channels; 0 for mean and deviation alone.
    """

    @register_to_config
    def __init__(self, channels: int = 3, width: int = 32) -> None:
        super().__init__()
        self.network = None
        if width:
            first, second = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
            self.network = nn.Sequential(first, nn.SiLU(), second, nn.SiLU())

    def forward(self, references: Tensor) -> Tensor:
        """Returns ``[B, 2 * C + F, h, w]`` for references ``[B, K, C, h, w]``."""
        present = (references.abs().amax((2, 3, 4), keepdim=True) > 0).to(references)
        count = present.sum(1).clamp_min(1)
        mean = references.sum(1) / count
        deviation = ((references - mean[:, None]).square() * present).sum(1) / count
        folded = [mean, (deviation + 1e-6).sqrt() - 1e-3]  # the constants are those of the training
        if self.network is not None:
            made = self.network(references.flatten(0, 1)).unflatten(0, references.shape[:2])
            folded.append((made * present).sum(1) / count)
        return torch.cat(folded, dim=1)
