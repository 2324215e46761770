"""Retrieval-augmented diffusion (Blattmann et al. 2022): latent diffusion that looks at neighbours of each image.

The model takes neighbours from the batch; it knows nothing of databases.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.util import check_params
from rdm.modules.conditioner import Conditioner


class RetrievalAugmentedDiffusion(LatentDiffusion):
    """Latent diffusion conditioned on the embeddings of an image's nearest neighbours by cross-attention.

    Args:
        conditioner: arguments of :class:`Conditioner`.
        p_uncond: probability of training an image with the null context, which is what guidance subtracts.
        use_neighbours: ``False`` trains the same network on the null context alone, the baseline without retrieval.
        neighbours_key: where a batch holds the embeddings ``[B, K, D]``.
        options: arguments of :class:`LatentDiffusion`.
    """

    # The released models store the null, which is zeros.
    optional_names = (*LatentDiffusion.optional_names, "unconditional_guidance_vex")

    def __init__(
        self,
        conditioner: Mapping[str, Any] | None = None,
        p_uncond: float = 0.1,
        use_neighbours: bool = True,
        neighbours_key: str = "neighbours",
        **options: Any,
    ) -> None:
        if not 0.0 <= p_uncond < 1.0:
            raise ValueError(f"p_uncond: got {p_uncond}, expected a probability below 1")
        check_params("LatentDiffusion", LatentDiffusion, options)
        super().__init__(**options)
        check_params("conditioner", Conditioner, conditioner or {})
        self.conditioner = Conditioner(**(conditioner or {}))
        self.p_uncond, self.use_neighbours, self.neighbours_key = p_uncond, use_neighbours, neighbours_key

    def null_context(self, context: Tensor) -> Tensor:
        """Returns the context that means "nothing known", of the same shape: zeros."""
        return torch.zeros_like(context)

    def context(self, batch: Mapping[str, Any]) -> Tensor:
        """Returns the context ``[B, K, D]`` of a batch's neighbours.

        Raises:
            ValueError: the batch holds no neighbours, or fewer than the conditioner's k.
        """
        k = self.conditioner.k
        if self.neighbours_key not in batch or batch[self.neighbours_key].shape[1] < k:
            got = tuple(batch[self.neighbours_key].shape) if self.neighbours_key in batch else "none"
            raise ValueError(f"neighbours: got {got}, expected [B, {k}, D]; set data.params.k to {k}")
        context = self.conditioner(batch[self.neighbours_key][:, :k])
        return context if self.use_neighbours else self.null_context(context)

    def drop_context(self, context: Tensor | None, generator: torch.Generator) -> Tensor | None:
        """Returns the context with the null in place of a share ``p_uncond`` of the images."""
        if context is None:
            return None
        dropped = torch.rand(len(context), generator=generator).to(context.device) < self.p_uncond
        return torch.where(dropped[:, None, None], self.null_context(context), context)
