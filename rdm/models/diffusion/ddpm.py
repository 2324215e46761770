"""Retrieval-augmented diffusion (Blattmann et al. 2022): latent diffusion conditioned on each image's neighbours.

The model takes the neighbours from the batch; it knows nothing of databases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.samplers import USUAL, USUAL_STEPS
from ldm.util import check_params
from rdm import compat
from rdm.models.neighbours import NeighbourConditioned


class RetrievalAugmentedDiffusion(NeighbourConditioned, LatentDiffusion):
    """Latent diffusion conditioned on the embeddings of an image's nearest neighbours by cross-attention.

    Args:
        conditioner: with the next three, see :meth:`NeighbourConditioned.set_conditioning`.
        p_uncond: see there.
        use_neighbours: see there.
        neighbours_key: see there.
        options: arguments of :class:`LatentDiffusion`.
    """

    kind = "diffusion"
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
        check_params("LatentDiffusion", LatentDiffusion, options)
        super().__init__(**{"conditioning_key": "crossattn", **options})
        self.set_conditioning(conditioner, p_uncond, use_neighbours, neighbours_key)

    @property
    def latent_channels(self) -> int:
        """Channels C of a latent."""
        return int(self.model.diffusion_model.in_channels)

    def latent_shape_of(self, height: int, width: int, trained: tuple[int, int]) -> tuple[int, int, int]:  # noqa: ARG002
        """Returns the shape ``(C, h, w)`` of the latents of images with a size in pixels.

        Args:
            height: of the images.
            width: of the images.
            trained: height and width of training images; this model makes images of other sizes, too.

        Raises:
            ValueError: first stage and U-Net make no images of this size.
        """
        factor, levels = self.first_stage_model.downsampling, getattr(self.model.diffusion_model, "levels", 1)
        if any(side % (factor * 2 ** (levels - 1)) for side in (height, width)):
            raise ValueError(
                f"got images of {height} x {width} pixels (height x width), expected multiples of "
                f"{factor * 2 ** (levels - 1)}: the first stage divides sides by {factor}, the U-Net by "
                f"{2 ** (levels - 1)}"
            )
        return self.latent_channels, height // factor, width // factor

    def usual_options(self, sampler: str | None) -> dict[str, Any]:
        """Returns the usual values of sampling options that may be left out, with a sampler or the usual one.

        On a CPU one image is sampled at a time, as a U-Net gains little from more.
        """
        sampler = sampler or USUAL
        batch_size = 1 if self.device.type == "cpu" else 8
        return {"sampler": sampler, "steps": USUAL_STEPS.get(sampler), "batch_size": batch_size}

    def compiled_networks(self) -> list[nn.Module]:
        """Returns the networks that may be compiled for sampling."""
        decoder = getattr(self.first_stage_model, "decoder", None)
        return [self.model.diffusion_model, *([] if decoder is None else [decoder])]


class MinimalRETRODiffusion(RetrievalAugmentedDiffusion):
    """CompVis' name for the model and its arguments, see ``rdm.compat.retrieval_arguments``.

    ``retrieval_cfg``, ``nn_memory`` and ``searcher_path`` are ignored, because the retriever is no part of the model;
    so is ``query_key``, because the query is no part of the context. ``options`` are those of
    :class:`RetrievalAugmentedDiffusion`. Checkpoints hold ``unconditional_guidance_vex [D]``, the direction of the null
    context.
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
        """Returns the null context: vectors of a length in the stored direction. CompVis' models use length 0."""
        stored = self.unconditional_guidance_vex
        direction = stored / stored.norm().clamp_min(torch.finfo(stored.dtype).tiny)  # zeros have none
        return (length * direction).to(context).expand_as(context)

    def context(self, batch: Mapping[str, Any]) -> Tensor:
        """Returns the context ``[B, K, D]`` of neighbours ``[B, K, D]`` or ``[B, patches, K / patches, D]``."""
        key = self.neighbours_key
        if key in batch:
            batch = {**batch, key: compat.flat_neighbours(batch[key])}
        return super().context(batch)
