"""Latent diffusion: a denoiser trained in the latent space of a first stage (Rombach et al. 2022).

Images ``[B, 3, H, W]`` in [-1, 1], latents ``[B, C, h, w]``, times ``[B] int64`` in [0, T).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.models.diffusion.condition import Condition, checked_share, with_nulls
from ldm.models.diffusion.guidance import USUAL_SCALE
from ldm.models.diffusion.pixel import DDPM
from ldm.models.diffusion.samplers import USUAL, USUAL_STEPS
from ldm.models.diffusion.wrapper import DiffusionWrapper
from ldm.models.first_stage import LATENT, encode, frozen_first_stage
from ldm.models.tiling import decode_tiled
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.parallel import gathered
from ldm.util import instantiate_from_config

__all__ = ["DDPM", "DiffusionWrapper", "LatentDiffusion"]
LOG = logging.getLogger(__name__)
UNCONDITIONAL, FIRST_STAGE = "__is_unconditional__", "__is_first_stage__"  # CompVis' words
CLASSES, TEXTS, OTHERS = "classes", "texts", "others"  # what a cond stage reads


class LatentDiffusion(DDPM):
    """A denoiser over the latents of a frozen first stage.

    Args:
        first_stage_config: the autoencoder. Its weights are part of this model's checkpoints; if it was trained with a
            running average (``use_ema``), they are the averaged ones.
        cond_stage_config: the encoder of the condition; ``__is_first_stage__`` for the first stage,
            ``__is_unconditional__`` or ``None`` for no condition.
        num_timesteps_cond: CompVis' noising of conditions, which none of its configs uses; must be 1 or ``None``.
        cond_stage_key: key of a batch for the input of the cond stage; with ``class_label``, the input is the batch.
        cond_stage_trainable: train the cond stage too.
        concat_mode: if ``conditioning_key`` is ``None``, concatenate the condition to the channels instead of using
            cross-attention.
        cond_stage_forward: name of the cond stage's method; by default ``encode`` if it has one, else its call.
        conditioning_key: how the U-Net gets the condition: ``concat`` (as channels), ``crossattn`` (as tokens),
            ``hybrid`` (both, in a subclass with its own ``context``) or ``adm`` (class numbers), see
            :class:`DiffusionWrapper`.
        scale_factor: factor of the latents.
        scale_by_std: measure the scale factor on the first training batch, so that latents have unit variance (Rombach
            et al. 2022, appendix G), and store it in checkpoints.
        ckpt_path: file of the initial weights.
        ignore_keys: beginnings of names that are not loaded from that file.
        load_only_unet: load only the U-Net from that file.
        cache_latents: keep the latent of every training image in memory, by its ``id``. This suits a small data set
            without augmentation. A KL first stage then gives its mode in every epoch. A batch with ``latent`` has them
            already.
        p_uncond: probability of training an image with the null condition, as classifier-free guidance needs it. That
            of classes is the last class of the cond stage, which no image may have; that of texts is the empty text.
        first_stage_tile: encode and decode large images in tiles with this side in pixels, or within this memory for a
            tile (``2GB``); see :mod:`ldm.models.tiling` for what that changes.
        options: arguments of :class:`DDPM`; ``clip_denoised`` has no effect, because latents have no fixed range.

    Raises:
        ValueError: options contradict each other, or the weights do not fit.
    """

    kind = "diffusion"
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
        p_uncond: float = 0.0,
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
        self.p_uncond = checked_share(p_uncond)
        if p_uncond and self.reads not in (CLASSES, TEXTS):
            raise ValueError(f"p_uncond: got {p_uncond}, expected 0 for a model that reads neither classes nor texts")
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

    @property
    def image_channels(self) -> int:
        """The number of channels of an image, which the first stage reads."""
        found = getattr(self.first_stage_model, "in_channels", None)
        return super().image_channels if found is None else int(found)

    @property
    def side_multiple(self) -> int:
        """The number of pixels that divides the sides of images: so far first stage and U-Net reduce them."""
        return int(getattr(self.first_stage_model, "downsampling", 1)) * super().side_multiple

    def train(self, mode: bool = True) -> LatentDiffusion:
        """Sets the mode of all parts except stages that are not trained, which stay in evaluation mode."""
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
        return self.scale_factor * encode(self.first_stage_model, image, generator, self.first_stage_tile)

    @torch.no_grad()
    def to_image(self, latent: Tensor) -> Tensor:
        """Returns images ``[B, 3, H, W]`` of scaled latents."""
        return decode_tiled(self.first_stage_model, latent / self.scale_factor, self.first_stage_tile)

    @property
    def reads(self) -> str | None:
        """What the cond stage encodes: ``classes``, ``texts`` or ``others``; None without a cond stage."""
        return None if self.cond_stage_model is None else getattr(self.cond_stage_model, "reads", OTHERS)

    def context(self, batch: Mapping[str, Any]) -> Condition:
        """Returns the cond stage's output for a batch, or None without a cond stage.

        Raises:
            ValueError: the batch has no such entry.
        """
        key = self.cond_stage_key
        if self.cond_stage_model is None:
            return None
        if key not in batch:
            raise ValueError(f"cond_stage_key: got '{key}', expected an entry of the batch: {', '.join(batch)}")
        return self.encode_condition(batch if key == "class_label" else batch[key])

    def condition_of(self, given: Sequence[Any]) -> Condition:
        """Returns the condition of texts, or of numbers of classes that the cond stage has."""
        if self.reads != CLASSES:
            return self.encode_condition(list(given))
        return self.encode_condition({self.cond_stage_model.key: torch.tensor(list(given), device=self.device)})

    @property
    def has_null(self) -> bool:
        """Whether there is a null condition: for texts always, for classes if the model was trained with one."""
        return self.reads == TEXTS or (self.reads == CLASSES and self.p_uncond > 0)

    def null_context(self, context: Condition) -> Condition:
        """Returns the null condition, of the shape of the given one or broadcastable to it.

        It is None for a model that has none, see :attr:`has_null`.
        """
        if context is None or not self.has_null:
            return None
        return self.condition_of([self.cond_stage_model.n_classes - 1 if self.reads == CLASSES else ""])

    def drop_context(self, context: Condition, generator: torch.Generator) -> Condition:
        """Returns the condition of a training step, in which some are the null condition."""
        if not self.p_uncond:
            return context
        return with_nulls(context, self.null_context(context), self.p_uncond, generator)

    def encode_condition(self, given: Any) -> Tensor:
        """Returns the cond stage's output for its input (texts, classes or images): tokens, channels or classes."""
        name = self.cond_stage_forward or ("encode" if hasattr(self.cond_stage_model, "encode") else "__call__")
        with torch.set_grad_enabled(self.cond_stage_trainable and torch.is_grad_enabled()):
            encoded = getattr(self.cond_stage_model, name)(given)
        return encoded.mode() if isinstance(encoded, DiagonalGaussianDistribution) else encoded

    def on_train_batch_start(self, batch: Mapping[str, Any], batch_idx: int) -> None:  # noqa: ARG002
        """Measures the scale factor on the first batch of a run, unless it was resumed or has initial weights."""
        if not self._measured and self.global_step == 0 and isinstance(self.scale_factor, Tensor):
            self.scale_factor.copy_(1.0 / gathered(self.to_latent(batch[self.first_stage_key])).std())
            LOG.info("scale factor measured on the first batch: %.5f", float(self.scale_factor))
        self._measured = True

    @property
    def takes_latents(self) -> bool:
        """Whether the latents of training images may come with a batch; otherwise its images are encoded."""
        return self._latents is not None

    def training_latents(self, batch: Mapping[str, Any], generator: torch.Generator) -> Tensor:
        """Returns the latents ``[B, C, h, w]`` of a training batch, from the cache if there is one."""
        if self._latents is None:
            return super().training_latents(batch, generator)
        if LATENT in batch:
            return self.scale_factor * batch[LATENT].to(self.device, torch.float32)
        new = [i for i, name in enumerate(batch["id"]) if name not in self._latents]
        if new:
            made = self.to_latent(batch[self.first_stage_key][new]).float().cpu()
            self._latents.update({batch["id"][i]: latent for i, latent in zip(new, made, strict=True)})
        return torch.stack([self._latents[name] for name in batch["id"]]).to(self.device)

    def trained_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of the U-Net and, if it is trained, of the cond stage."""
        learned = list(self.cond_stage_model.parameters()) if self.cond_stage_trainable else []
        return [*super().trained_parameters(), *learned]

    @property
    def latent_channels(self) -> int:
        """Channels C of a latent."""
        return int(self.model.diffusion_model.out_channels)

    def latent_shape_of(self, height: int, width: int, trained: tuple[int, int]) -> tuple[int, int, int]:  # noqa: ARG002
        """Returns the shape ``(C, h, w)`` of the latents of images with a size in pixels.

        Args:
            height: of the images.
            width: of the images.
            trained: height and width of training images; this model makes images of other sizes, too.

        Raises:
            ValueError: first stage and U-Net make no images of this size.
        """
        factor = self.first_stage_model.downsampling
        if any(side % self.side_multiple for side in (height, width)):
            raise ValueError(
                f"got images of {height} x {width} pixels (height x width), expected multiples of "
                f"{self.side_multiple}: the first stage divides sides by {factor}, the U-Net by "
                f"{self.side_multiple // factor}"
            )
        return self.latent_channels, height // factor, width // factor

    def usual_options(self, sampler: str | None) -> dict[str, Any]:
        """Returns the usual values of sampling options that may be left out, with a sampler or the usual one.

        On a CPU one image is sampled at a time, as a U-Net gains little from more.
        """
        sampler = sampler or USUAL
        batch_size = 1 if self.device.type == "cpu" else 8
        steps = min(USUAL_STEPS[sampler], len(self.schedule))
        return {"scale": USUAL_SCALE, "sampler": sampler, "steps": steps, "batch_size": batch_size}

    def compiled_networks(self) -> list[nn.Module]:
        """Returns the networks that may be compiled for sampling."""
        decoder = getattr(self.first_stage_model, "decoder", None)
        return [self.model.diffusion_model, *([] if decoder is None else [decoder])]
