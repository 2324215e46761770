"""Retrieval-augmented diffusion (Blattmann et al. 2022): latent diffusion that looks at neighbours of each image.

The model takes neighbours from the batch; it knows nothing of databases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.wrapper import Condition
from ldm.util import check_params
from rdm import compat
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

    # Released checkpoints hold a direction for the null, whose length is zero.
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
        super().__init__(**{"conditioning_key": "crossattn", **options})
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

    def drop_context(self, context: Condition, generator: torch.Generator) -> Condition:
        """Returns the context with the null in place of a share ``p_uncond`` of the images."""
        if not isinstance(context, Tensor):
            return context
        dropped = torch.rand(len(context), generator=generator).to(context.device) < self.p_uncond
        return torch.where(dropped[:, None, None], self.null_context(context), context)


class MinimalRETRODiffusion(RetrievalAugmentedDiffusion):
    """CompVis' name for the model and its arguments, see ``rdm.compat.retrieval_arguments``.

    ``retrieval_cfg``, ``nn_memory`` and ``searcher_path`` are not read (a retriever stands beside the model),
    nor is ``query_key``, as the query is no part of the context. ``options`` are those of
    :class:`RetrievalAugmentedDiffusion`. Checkpoints hold ``unconditional_guidance_vex [D]``, the null's direction.
    """

    unconditional_guidance_vex: Tensor

    def __init__(
        self,
        k_nn: int,
        query_key: str,  # noqa: ARG002 (CompVis' signature)
        retrieval_encoder_cfg: Mapping[str, Any],
        nn_key: str = "retro_conditioning",
        retrieval_cfg: Mapping[str, Any] | None = None,
        nn_memory: str | None = None,
        searcher_path: str | None = None,
        p_uncond: float = 0.0,
        guidance_vex_shape: Sequence[int] | None = None,
        conditioning_key: str | None = None,
        cond_stage_config: Mapping[str, Any] | str | None = None,
        *,
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        load_only_unet: bool = False,
        **options: Any,
    ) -> None:
        compat.say_where_neighbours_come_from(
            retrieval_cfg=retrieval_cfg, nn_memory=nn_memory, searcher_path=searcher_path
        )
        ours = compat.retrieval_arguments(k_nn, nn_key, retrieval_encoder_cfg, conditioning_key, cond_stage_config)
        super().__init__(p_uncond=p_uncond, **ours, **options)
        width = guidance_vex_shape or [self.model.diffusion_model.context_widths[0]]
        self.register_buffer("unconditional_guidance_vex", torch.ones(*width))
        if ckpt_path:
            self.init_from_checkpoint(ckpt_path, ignore_keys, load_only_unet)

    def null_context(self, context: Tensor, length: float = 0.0) -> Tensor:
        """Returns the null of the context's shape, of a length along the stored direction; releases use length 0."""
        stored = self.unconditional_guidance_vex
        direction = stored / stored.norm().clamp_min(torch.finfo(stored.dtype).tiny)  # zeros have none
        return (length * direction).to(context).expand_as(context)

    def context(self, batch: Mapping[str, Any]) -> Tensor:
        """Returns the context ``[B, K, D]`` of a batch's neighbours, which may lie by patches."""
        found = {name: compat.flat_neighbours(batch[name]) for name in (self.neighbours_key,) if name in batch}
        return super().context({**batch, **found})
