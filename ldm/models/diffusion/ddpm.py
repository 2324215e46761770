"""Latent diffusion: a denoiser trained in the latent space of a first stage (Rombach et al. 2022).

Images ``[B, 3, H, W]`` in [-1, 1], latents ``[B, C, h, w]``, times ``[B] int64`` in [0, T).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.models.diffusion.pixel import DDPM
from ldm.models.diffusion.wrapper import Condition, DiffusionWrapper
from ldm.models.first_stage import frozen_first_stage
from ldm.models.tiling import decode_tiled, encode_tiled
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.util import instantiate_from_config

__all__ = ["DDPM", "DiffusionWrapper", "LatentDiffusion"]
LOG = logging.getLogger(__name__)
UNCONDITIONAL, FIRST_STAGE = "__is_unconditional__", "__is_first_stage__"  # CompVis' words


class LatentDiffusion(DDPM):
    """A denoiser over the latents of a frozen first stage.

    Args:
        first_stage_config: the autoencoder; its weights are part of this model's checkpoints. Of one that was trained
            with a running average (``use_ema``), these are the averaged ones.
        cond_stage_config: makes a context of what a batch holds; ``__is_first_stage__`` takes the first stage,
            ``__is_unconditional__`` (or ``None``) nothing.
        num_timesteps_cond: CompVis' noising of conditions, which none of its configs turns on; 1 or ``None``.
        cond_stage_key: where a batch holds what the cond stage reads; ``class_label`` hands it the whole batch.
        cond_stage_trainable: train the cond stage too.
        concat_mode: whether a condition joins the channels or is looked at, where ``conditioning_key`` is ``None``.
        cond_stage_forward: name of the cond stage's method; ``encode``, or a call, where there is none.
        conditioning_key: see :class:`DiffusionWrapper`. A ``hybrid`` needs a subclass whose ``context`` makes it.
        scale_factor: latents are multiplied by it.
        scale_by_std: measure it on the first training batch, so that latents have unit variance (Rombach et al. 2022,
            appendix G), and store it in checkpoints.
        ckpt_path: weights to start from.
        ignore_keys: names in that file which start with one of these are left out.
        load_only_unet: take the U-Net alone from that file.
        cache_latents: keep the latent of every training image in memory, by its ``id``, once it is made: for a data set
            that is not augmented and small enough. A KL first stage then gives its mode in every epoch.
        first_stage_tile: encode and decode large images in tiles: their side in pixels, or the memory that one may take
            (``2GB``); see :mod:`ldm.models.tiling` for what that changes.
        options: arguments of :class:`DDPM`, of which ``clip_denoised`` has no effect: latents have no fixed range.

    Raises:
        ValueError: options that contradict each other, or weights that do not fit.
    """

    optional_names = (*DDPM.optional_names, "first_stage_model.model_ema.*")
    scale_factor: Tensor | float
    first_stage_model: Any
    cond_stage_model: Any

    def __init__(
        self,
        first_stage_config: Mapping[str, Any],
        cond_stage_config: Mapping[str, Any] | str | None = None,
        num_timesteps_cond: int | None = None,
        cond_stage_key: str = "image",
        cond_stage_trainable: bool = False,
        concat_mode: bool = True,
        cond_stage_forward: str | None = None,
        conditioning_key: str | None = None,
        scale_factor: float = 1.0,
        scale_by_std: bool = False,
        *,
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        load_only_unet: bool = False,
        cache_latents: bool = False,
        first_stage_tile: int | str | None = None,
        **options: Any,
    ) -> None:
        if num_timesteps_cond not in (None, 1):
            raise ValueError(f"num_timesteps_cond: got {num_timesteps_cond}, expected 1: conditions are not noised")
        if scale_by_std and scale_factor != 1.0:
            raise ValueError(f"scale_factor: got {scale_factor}, expected 1 with scale_by_std, which measures it")
        if cond_stage_config == UNCONDITIONAL:
            cond_stage_config = conditioning_key = None
        elif cond_stage_config is not None and conditioning_key is None:
            conditioning_key = "concat" if concat_mode else "crossattn"
        super().__init__(conditioning_key=conditioning_key, **{**options, "clip_denoised": False})
        self.first_stage_model = frozen_first_stage(first_stage_config)
        self.cond_stage_key, self.cond_stage_forward = cond_stage_key, cond_stage_forward
        self.cond_stage_model = None
        if cond_stage_config == FIRST_STAGE:
            cond_stage_trainable, self.cond_stage_model = False, self.first_stage_model
        elif isinstance(cond_stage_config, Mapping):
            self.cond_stage_model = instantiate_from_config(cond_stage_config)
            if not cond_stage_trainable:
                self.cond_stage_model.eval().requires_grad_(False)
        elif cond_stage_config is not None:
            words = f"a mapping with a target, {FIRST_STAGE} or {UNCONDITIONAL}"
            raise ValueError(f"cond_stage_config: got {cond_stage_config!r}, expected {words}")
        self.cond_stage_trainable = cond_stage_trainable and self.cond_stage_model is not None
        self.first_stage_tile = first_stage_tile
        self.scale_by_std = scale_by_std
        if scale_by_std:
            self.register_buffer("scale_factor", torch.tensor(float(scale_factor)))
        else:
            self.scale_factor = float(scale_factor)
        self._measured = not scale_by_std or bool(ckpt_path and not load_only_unet)
        self._latents: dict[str, Tensor] | None = {} if cache_latents else None
        if ckpt_path:
            self.init_from_checkpoint(ckpt_path, ignore_keys, load_only_unet)

    def train(self, mode: bool = True) -> LatentDiffusion:
        """Sets the mode of all but the stages that never train."""
        super().train(mode)
        self.first_stage_model.eval()
        if self.cond_stage_model is not None and not self.cond_stage_trainable:
            self.cond_stage_model.eval()
        return self

    @torch.no_grad()
    def to_latent(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Returns the scaled latent ``[B, C, h, w]`` of images; the scale factor appears here and in ``to_image`` only.

        Args:
            image: ``[B, 3, H, W]`` in [-1, 1].
            generator: draws from a KL first stage's posterior; its mode without one.
        """
        encoded = encode_tiled(self.first_stage_model, image, self.first_stage_tile)
        if isinstance(encoded, DiagonalGaussianDistribution):
            encoded = encoded.mode() if generator is None else encoded.sample(generator=generator)
        return self.scale_factor * encoded

    @torch.no_grad()
    def to_image(self, latent: Tensor) -> Tensor:
        """Returns images ``[B, 3, H, W]`` of scaled latents."""
        return decode_tiled(self.first_stage_model, latent / self.scale_factor, self.first_stage_tile)

    def context(self, batch: Mapping[str, Any]) -> Condition:
        """Returns what the cond stage makes of a batch; none without a cond stage."""
        if self.cond_stage_model is None:
            return None
        return self.encode_condition(batch if self.cond_stage_key == "class_label" else batch[self.cond_stage_key])

    def encode_condition(self, given: Any) -> Tensor:
        """Returns the cond stage's output for what it reads (texts, classes, images): tokens, channels or classes."""
        name = self.cond_stage_forward or ("encode" if hasattr(self.cond_stage_model, "encode") else "__call__")
        with torch.set_grad_enabled(self.cond_stage_trainable and torch.is_grad_enabled()):
            encoded = getattr(self.cond_stage_model, name)(given)
        return encoded.mode() if isinstance(encoded, DiagonalGaussianDistribution) else encoded

    def on_train_batch_start(self, batch: Mapping[str, Any], batch_idx: int) -> None:  # noqa: ARG002
        """Measures the scale factor at the start of a run that was neither resumed nor started from weights."""
        if not self._measured and self.global_step == 0 and isinstance(self.scale_factor, Tensor):
            self.scale_factor.copy_(1.0 / self.to_latent(batch[self.first_stage_key]).std())
            LOG.info("scale factor measured on the first batch: %.5f", float(self.scale_factor))
        self._measured = True

    def training_latents(self, batch: Mapping[str, Any], generator: torch.Generator) -> Tensor:
        """Returns the latents ``[B, C, h, w]`` of a training batch, from memory where they are kept there."""
        if self._latents is None:
            return super().training_latents(batch, generator)
        new = [i for i, name in enumerate(batch["id"]) if name not in self._latents]
        if new:
            made = self.to_latent(batch[self.first_stage_key][new]).float().cpu()
            self._latents.update({batch["id"][i]: latent for i, latent in zip(new, made, strict=True)})
        return torch.stack([self._latents[name] for name in batch["id"]]).to(self.device)

    def trained_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of the U-Net, and of the cond stage where it is trained."""
        learned = list(self.cond_stage_model.parameters()) if self.cond_stage_trainable else []
        return [*super().trained_parameters(), *learned]
