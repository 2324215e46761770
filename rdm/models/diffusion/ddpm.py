"""Retrieval-augmented diffusion (Blattmann et al. 2022): latent diffusion conditioned on each image's neighbours.

The model takes the neighbours from the batch; it knows nothing of databases.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint import average_as_weights
from ldm.models.diffusion.condition import Hybrid
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.models.diffusion.wrapper import DiffusionWrapper
from ldm.util import check_params
from rdm import compat
from rdm.models.neighbours import NeighbourConditioned, make_conditioner, with_grid_weights
from rdm.models.references import References, sampled
from rdm.modules.grid_tokens import GridTokens

LOG = logging.getLogger(__name__)
REFERENCE_SCALE = 5.0  # the usual guidance scale of reference latents, see models/rdm/emoji/README.md
STEM, ENCODER = "input_blocks.0.0.weight", "reference_encoder."  # names of weights in a U-Net


class RetrievalAugmentedDiffusion(NeighbourConditioned, LatentDiffusion):
    """Latent diffusion conditioned on the embeddings of an image's nearest neighbours by cross-attention.

    Args:
        conditioner: with the next three, see :meth:`NeighbourConditioned.set_conditioning`.
        p_uncond: see there.
        use_neighbours: see there.
        neighbours_key: see there.
        references: options of :class:`References`, with which the model also sees the latents of the neighbours. It
            then needs a :class:`ReferenceUNetModel`, or a :class:`UNetModel` whose ``in_channels`` count those of x_t,
            k references and the strength of their noise. ``None`` and ``False`` stand for a model without them.
        options: arguments of :class:`LatentDiffusion`.

    Raises:
        ValueError: options contradict each other, or the U-Net has no place for references.
    """

    # Released checkpoints hold a direction for the null, whose length is zero.
    optional_names = (*LatentDiffusion.optional_names, "unconditional_guidance_vex")

    def __init__(
        self,
        conditioner: Mapping[str, Any] | None = None,
        p_uncond: float = 0.1,
        use_neighbours: bool = True,
        neighbours_key: str = "neighbours",
        references: Mapping[str, Any] | bool | None = None,
        **options: Any,
    ) -> None:
        check_params("LatentDiffusion", LatentDiffusion, options)
        self._conditioner_config = conditioner
        self.references = None
        if references is not None and references is not False:
            given = {} if references is True else references
            check_params("references", References, given)
            self.references = References(**given)
        super().__init__(**{"conditioning_key": "hybrid" if self.references else "crossattn", **options})
        if (self.model.conditioning_key == "hybrid") != (self.references is not None):
            raise ValueError(
                f"conditioning_key: got '{self.model.conditioning_key}' with references={references}, expected "
                "'hybrid' with references and 'crossattn' without them; leave out conditioning_key"
            )
        self.set_conditioning(conditioner, p_uncond, use_neighbours, neighbours_key)

    def wrapped(self, unet_config: Mapping[str, Any], conditioning_key: str | None) -> DiffusionWrapper:
        """Returns the U-Net in its wrapper, with the module for grids of tokens if the conditioner has a grid."""
        wrapper = super().wrapped(unet_config, conditioning_key)
        conditioner = make_conditioner(self._conditioner_config)
        if conditioner.grid is not None:
            widths: list[int] = list(getattr(wrapper.diffusion_model, "context_widths", ()))
            if len(widths) != 1:
                raise ValueError(f"tokens: grid: got a U-Net with context_dim {widths}, expected one width")
            wrapper.add_module("grid_tokens", conditioner.grid_tokens(widths[0]))
        return wrapper

    @property
    def grid_tokens(self) -> GridTokens | None:  # type: ignore[override]  # it belongs to the networks that are averaged
        """The module for grids of tokens; None for a model of pooled vectors."""
        return getattr(self.model, "grid_tokens", None)

    @property
    def latent_channels(self) -> int:
        """Channels C of a latent."""
        return super().latent_channels if self.references is not None else int(self.model.diffusion_model.in_channels)

    def context(self, batch: Mapping[str, Any]) -> Any:
        """Returns the context ``[B, L, D]`` of a batch's neighbours; with references a :class:`Hybrid` with it.

        Raises:
            ValueError: the batch holds no neighbours or no references, or fewer than the conditioner's k.
        """
        tokens, k = super().context(batch), self.conditioner.k
        if self.references is None:
            return tokens
        latents = batch.get(self.references.key)
        if latents is None or latents.shape[1] < k:
            got = "none" if latents is None else tuple(latents.shape)
            raise ValueError(f"references: got {got}, expected [B, {k}, C, h, w]; set data.params.references")
        context = self.with_references(tokens, self.scale_factor * latents[:, :k].to(tokens.device, torch.float32))
        return context if self.use_neighbours else self.null_context(context)

    def with_references(
        self, tokens: Tensor, latents: Tensor, strength: float = 0.0, seeds: Sequence[int] | None = None
    ) -> Hybrid:
        """Returns the condition of context tokens and reference latents.

        Args:
            tokens: ``[B, L, D]``.
            latents: ``[B, K, C, h, w]``, scaled like those of images. Zeros stand for an absent reference.
            strength: of the noise on the references, from 0 to 1.
            seeds: the seed of each image's noise; required with a strength.
        """
        return Hybrid(sampled(latents, strength, seeds), tokens)

    def drop_context(self, context: Any, generator: torch.Generator) -> Any:
        """Returns the context of a training step, in which contexts, references and single references are dropped."""
        if isinstance(context, Hybrid) and self.references is not None:
            latents = context.image[:, :-1].unflatten(1, (-1, self.latent_channels))
            context = context._replace(image=self.references.trained(latents, generator))
        return super().drop_context(context, generator)

    def understood(self, context: Any) -> Any:
        """Returns the part of another model's condition that this model takes: the tokens if it has no references."""
        return context.tokens if isinstance(context, Hybrid) and self.references is None else context

    def usual_options(self, sampler: str | None) -> dict[str, Any]:
        """Returns the usual values of options that may be left out, see :meth:`LatentDiffusion.usual_options`."""
        usual = super().usual_options(sampler)
        if self.references is None:
            return usual
        return {**usual, "reference_scale": REFERENCE_SCALE, "reference_agreement": self.references.agreement}

    def adapted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns initial weights, with new ones for references and grids if they are of a model without them.

        The U-Net then makes at first what it made without references, because their channels have weights of zero.

        Raises:
            ValueError: the weights are those of a model with grids, but this model has none.
        """
        found = next((name for name in state if name.partition("diffusion_model.")[1]), None)
        if found is not None:
            prefix = found.partition("diffusion_model.")[0]
            state = with_grid_weights(state, f"{prefix}grid_tokens.", self.grid_tokens)
        network = self.model.diffusion_model.state_dict()
        name = next((name for name in state if name.endswith(f"diffusion_model.{STEM}")), None)
        if self.references is None or name is None or state[name].shape[1] != self.latent_channels:
            return state
        LOG.info("the weights are of a model without references; those of references are new")
        state, start = average_as_weights(state), name.removesuffix(STEM)
        stem = torch.zeros_like(network[STEM])
        stem[:, : self.latent_channels] = state[name]
        new = {f"{start}{each}": value for each, value in network.items() if each.startswith(ENCODER)}
        return {**new, **state, name: stem}


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

    def null_context(self, context: Any, length: float = 0.0) -> Any:
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
