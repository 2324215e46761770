"""A U-Net that also sees reference latents: the latents of the neighbours, laid under the place of the image.

They are the image half of a hybrid condition (``conditioning_key: hybrid``), so x_t, K reference latents and a channel
with the strength of their noise arrive stacked, ``[B, C + K * C + 1, h, w]``. A reference of zeros is absent.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ldm.modules.attention import ProjectedContext, Tokens
from ldm.modules.layers import channels_last
from rdm.modules.diffusionmodules.openaimodel import UNetModel


class ReferenceEncoder(nn.Module):
    """Folds any number of references, in any order, into a fixed number of channels.

    The channels are the mean of the references, their standard deviation, and the mean of what a small network makes
    of each one alike (Zaheer et al. 2017, arXiv 1703.06114, theorem 2). All of them are zeros if every reference is
    absent.

    Args:
        channels: channels C of a latent.
        width: width F of the network, and its number of output channels; 0 for mean and deviation alone.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.channels, self.out_channels = channels, 2 * channels + width
        self.network = None
        if width:
            self.network = nn.Sequential(
                nn.Conv2d(channels, width, 3, padding=1),
                nn.SiLU(),
                nn.Conv2d(width, width, 3, padding=1),
                nn.SiLU(),
            )

    def forward(self, references: Tensor) -> Tensor:
        """Returns ``[B, 2 * C + F, h, w]`` for references ``[B, K, C, h, w]``."""
        present = (references.abs().amax((2, 3, 4), keepdim=True) > 0).to(references)
        count = present.sum(1).clamp_min(1)
        mean = references.sum(1) / count
        deviation = ((references - mean[:, None]).square() * present).sum(1) / count
        # The root has no derivative at 0, which is the deviation of a single reference.
        folded = [mean, (deviation + 1e-6).sqrt() - 1e-3]
        if self.network is not None:
            made = self.network(channels_last(references.flatten(0, 1))).unflatten(0, references.shape[:2])
            folded.append((made * present).sum(1) / count)
        return torch.cat(folded, dim=1)


class ReferenceUNetModel(UNetModel):
    """The U-Net of ``rdm`` over x_t, folded references and the strength of their noise.

    A plain :class:`UNetModel` sees the references stacked instead; then their number and order are fixed.

    Args:
        in_channels: channels C of x_t.
        reference_width: channels of the encoder of references, see :class:`ReferenceEncoder`; 0 leaves their mean and
            their standard deviation.
        options: further arguments of :class:`UNetModel`.
    """

    further: ClassVar[tuple[str, ...]] = ("reference_encoder",)

    def __init__(self, *, in_channels: int, reference_width: int = 32, **options: Any) -> None:
        encoder = ReferenceEncoder(in_channels, reference_width)
        super().__init__(in_channels=in_channels + encoder.out_channels + 1, **options)
        self.reference_encoder = encoder

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor | None = None,
        context: Tokens | ProjectedContext | None = None,
        y: Tensor | None = None,
    ) -> Tensor:
        """Returns the prediction ``[B, out_channels, h, w]``.

        Args:
            x: x_t, references and strength, ``[B, C + K * C + 1, h, w]``, with at least one reference.
            timesteps: as for :class:`UNetModel`; so are ``context`` and ``y``.
            context: see there.
            y: see there.

        Raises:
            ValueError: an input does not fit the model.
        """
        channels = self.reference_encoder.channels
        stacked = x.shape[1] - channels - 1
        if stacked < channels or stacked % channels:
            raise ValueError(
                f"x has shape {list(x.shape)}, expected [B, {channels} + K * {channels} + 1, h, w]: x_t, K references "
                "and the strength of their noise"
            )
        latent, references, strength = x.split([channels, stacked, 1], dim=1)
        folded = self.reference_encoder(references.unflatten(1, (-1, channels)))
        return super().forward(torch.cat([latent, folded, strength], dim=1), timesteps, context, y)
