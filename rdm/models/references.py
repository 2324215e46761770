"""Reference latents as a part of the condition: how they are dropped and noised in training, and noised in sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.models.diffusion.stepping import seeded_noise
from ldm.parallel import rand, randn


@dataclass(frozen=True)
class References:
    """The options of training with reference latents.

    Attributes:
        key: where a batch holds the latents of the neighbours, ``[B, K, C, h, w]``, as the first stage encodes them.
        p_drop: probability that an image sees no references but its context tokens. An image with the null context
            never sees references.
        p_single: probability that one neighbour's reference is left out, for each neighbour alone.
        p_noise: probability that the references of an image get noise, of a strength drawn uniformly from 0 to 1.
        agreement: what sampling takes for ``reference_agreement`` if it is not given; training does not use it.

    Raises:
        ValueError: one of the first three is no probability, or ``agreement`` no correlation.
    """

    key: str = "references"
    p_drop: float = 0.1
    p_single: float = 0.2
    p_noise: float = 0.5
    agreement: float | None = None

    def __post_init__(self) -> None:
        for name in ("p_drop", "p_single", "p_noise"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"references.{name}: got {getattr(self, name)}, expected a probability from 0 to 1")
        if self.agreement is not None and not -1.0 <= self.agreement <= 1.0:
            raise ValueError(f"references.agreement: got {self.agreement}, expected a correlation from -1 to 1")

    def trained(self, latents: Tensor, generator: torch.Generator) -> Tensor:
        """Returns the channels ``[B, K * C + 1, h, w]`` of a training step for latents ``[B, K, C, h, w]``.

        Latents of zeros are those of absent references. Everything that is random depends on the generator alone.
        """
        n, k = latents.shape[:2]
        draw = rand([n, k + 3], generator).to(latents.device)
        shown = (draw[:, :k] >= self.p_single) & (draw[:, k, None] >= self.p_drop) & present(latents)
        strength = torch.where(draw[:, k + 1] < self.p_noise, draw[:, k + 2], 0.0)
        noise = randn(latents.shape, generator).to(latents)
        return channels_of(noised(latents, strength, noise), strength, shown)


def present(latents: Tensor) -> Tensor:
    """Returns which references of ``[B, K, C, h, w]`` are there, ``[B, K] bool``: those that are not all zeros."""
    return latents.abs().amax((2, 3, 4)) > 0


def noised(latents: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Returns latents ``[B, K, C, h, w]`` with noise of a strength ``[B]`` from 0 to 1, at the same variance.

    This is the augmentation of conditions of Ho et al. 2021 (arXiv 2106.15282, section 4.2).
    """
    share = strength.view(-1, 1, 1, 1, 1)
    return (1 - share.square()).sqrt() * latents + share * noise


def channels_of(latents: Tensor, strength: Tensor, shown: Tensor) -> Tensor:
    """Returns the channels of a hybrid condition, ``[B, K * C + 1, h, w]``.

    Args:
        latents: ``[B, K, C, h, w]``, with their noise.
        strength: of that noise, ``[B]``, which fills the last channel; 0 where no reference is shown.
        shown: which references are shown, ``[B, K] bool``; the others become zeros.
    """
    kept = torch.where(shown[:, :, None, None, None], latents, 0.0).flatten(1, 2)
    told = torch.where(shown.any(1), strength, 0.0).to(latents)
    return torch.cat([kept, told.view(-1, 1, 1, 1).expand(-1, 1, *latents.shape[3:])], dim=1)


def sampled(latents: Tensor, strength: float, seeds: Sequence[int] | None) -> Tensor:
    """Returns the channels ``[B, K * C + 1, h, w]`` for sampling; the noise of image i depends on ``seeds[i]`` alone.

    Args:
        latents: ``[B, K, C, h, w]``; zeros stand for an absent reference.
        strength: of their noise, from 0 to 1.
        seeds: one for each image; required with a strength.

    Raises:
        ValueError: the strength is not from 0 to 1, or there is noise without a seed for each image.
    """
    if not 0.0 <= strength <= 1.0 or (strength and (seeds is None or len(seeds) != len(latents))):
        raise ValueError(f"references: got strength {strength} with seeds {seeds}, expected 0 to 1 and one seed each")
    told = torch.full((len(latents),), strength, device=latents.device)
    shown = present(latents)
    if strength and seeds is not None:
        noise = seeded_noise([further_seed(seed) for seed in seeds], latents.shape[1:], latents.device)
        latents = noised(latents, told, noise.to(latents))
    return channels_of(latents, told, shown)


def further_seed(seed: int) -> int:
    """Returns a seed for the references' noise that is not the one of the image's own noise."""
    return (seed + 1) * 2654435761 % 2**32
