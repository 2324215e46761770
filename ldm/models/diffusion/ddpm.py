"""Latent diffusion: a denoiser trained in the latent space of a first stage (Rombach et al. 2022).

Images ``[B, 3, H, W]`` in [-1, 1], latents ``[B, C, h, w]``, times ``[B] int64`` in [0, T).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ldm.checkpoint import load_weights, read_weights
from ldm.models.diffusion.guidance import Denoiser, guide
from ldm.models.diffusion.samplers import SAMPLERS, seeded_noise, seeded_step_noise
from ldm.models.diffusion.schedule import NoiseSchedule, check_parameterization
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.modules.ema import LitEma
from ldm.util import instantiate_from_config, nearest

LOG = logging.getLogger(__name__)


class DiffusionWrapper(nn.Module):
    """Holds the U-Net under the name that checkpoints know, ``model.diffusion_model``."""

    def __init__(self, unet_config: Mapping[str, Any]) -> None:
        super().__init__()
        self.diffusion_model = instantiate_from_config(unet_config)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """Returns what the U-Net predicts, ``[B, C, h, w]``, for ``context [B, L, D]`` or none."""
        return self.diffusion_model(x, t, context=context)


class LatentDiffusion(pl.LightningModule):
    """A denoiser over the latents of a frozen first stage.

    Args:
        unet_config: the U-Net.
        first_stage_config: the autoencoder; its weights are part of this model's checkpoints.
        schedule: arguments of ``NoiseSchedule.from_name``.
        parameterization: what the U-Net predicts: ``eps``, ``x0`` or ``v``.
        scale_factor: latents are multiplied by it; 0 measures it on the first training batch, so that latents have
            unit variance (Rombach et al. 2022, appendix G).
        ema_decay: of the running average of the weights; ``None`` for none.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        scheduler_config: factor of the learning rate by step.
        image_key: where a batch holds its images.
        ckpt_path: weights to start from.
        cache_latents: keep the latent of every training image in memory, by its ``id``, once it is made: for a data set
            that is not augmented and small enough. A KL first stage then gives its mode in every epoch.
        seed: of noise and times; step n draws from (seed, n, rank), so a resumed run repeats nothing.

    Raises:
        ValueError: an unknown parameterization, or weights that do not fit.
    """

    # Names that a checkpoint may lack or have in excess: CompVis stores a scale factor only where it was measured.
    optional_names: tuple[str, ...] = ("loss.*", "scale_factor")
    scale_factor: Tensor
    first_stage_model: Any
    model_ema: LitEma | None

    def __init__(
        self,
        unet_config: Mapping[str, Any],
        first_stage_config: Mapping[str, Any],
        schedule: Mapping[str, Any] | None = None,
        parameterization: str = "eps",
        scale_factor: float = 1.0,
        ema_decay: float | None = 0.9999,
        learning_rate: float = 1e-4,
        weight_decay: float = 0.01,
        scheduler_config: Mapping[str, Any] | None = None,
        image_key: str = "image",
        ckpt_path: str | None = None,
        cache_latents: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_parameterization(parameterization)
        self.model = DiffusionWrapper(unet_config)
        self.first_stage_model = instantiate_from_config(first_stage_config).eval().requires_grad_(False)
        self.schedule = NoiseSchedule.from_name(**(schedule or {}))
        for name, value in self.schedule.buffers().items():
            self.register_buffer(name, value)
        self.register_buffer("scale_factor", torch.tensor(float(scale_factor)))
        self.model_ema = LitEma(self.model, decay=ema_decay) if ema_decay is not None else None
        self.parameterization, self.image_key, self.seed = parameterization, image_key, seed
        self.learning_rate, self.weight_decay, self.scheduler_config = (
            learning_rate,
            weight_decay,
            scheduler_config,
        )
        self._latents: dict[str, Tensor] | None = {} if cache_latents else None
        if ckpt_path:
            self.init_from_checkpoint(ckpt_path)

    def init_from_checkpoint(self, path: str) -> None:
        """Loads weights; where the file has no average of them, the average starts at the weights themselves."""
        state = read_weights(path)
        averaged = any(name.startswith("model_ema.") for name in state)
        needed = averaged and self.model_ema is not None
        allow = self.optional_names if needed else (*self.optional_names, "model_ema.*")
        load_weights(self, state, source=path, allow=allow)
        if self.model_ema is not None and not averaged:
            self.model_ema = LitEma(self.model, decay=float(self.model_ema.decay))

    def train(self, mode: bool = True) -> LatentDiffusion:
        """Sets the mode of all but the first stage, which never trains."""
        super().train(mode)
        self.first_stage_model.eval()
        return self

    @torch.no_grad()
    def to_latent(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Returns the scaled latent ``[B, C, h, w]`` of images; the scale factor appears here and in ``to_image`` only.

        Args:
            image: ``[B, 3, H, W]`` in [-1, 1].
            generator: draws from a KL first stage's posterior; its mode without one.
        """
        encoded = self.first_stage_model.encode(image)
        if isinstance(encoded, DiagonalGaussianDistribution):
            encoded = encoded.mode() if generator is None else encoded.sample(generator=generator)
        return self.scale_factor * encoded

    @torch.no_grad()
    def to_image(self, latent: Tensor) -> Tensor:
        """Returns images ``[B, 3, H, W]`` of scaled latents."""
        return self.first_stage_model.decode(latent / self.scale_factor)

    def context(self, batch: Mapping[str, Any]) -> Tensor | None:  # noqa: ARG002 (for subclasses)
        """Returns what the U-Net may look at, ``[B, L, D]``; none here."""
        return None

    def drop_context(self, context: Tensor | None, generator: torch.Generator) -> Tensor | None:  # noqa: ARG002
        """Returns the context of a training step; subclasses drop it now and then, to train the null."""
        return context

    def predict_eps(self, x: Tensor, t: Tensor, context: Tensor | None) -> Tensor:
        """Returns the noise the model sees in ``x``, whatever it was trained to predict."""
        return self.schedule.to_eps(self.parameterization, self.model(x, t, context), x, t)

    def denoiser(self, context: Tensor | None, null: Tensor | None = None, scale: float = 1.0) -> Denoiser:
        """Returns ``(x_t, t) -> eps`` with the conditioning closed over."""
        return guide(self.predict_eps, context, null, scale)

    def ema_scope(self) -> Any:
        """Returns a context manager within which the averaged weights are in place."""
        return torch.no_grad() if self.model_ema is None else self.model_ema.applied(self.model)

    def loss(self, latent: Tensor, context: Tensor | None, t: Tensor, noise: Tensor) -> Tensor:
        """Returns the squared error of every sample, ``[B]`` (Ho et al. 2020, equation 14)."""
        output = self.model(self.schedule.add_noise(latent, noise, t), t, context)
        target = self.schedule.target(self.parameterization, latent, noise, t)
        return (output.float() - target).square().mean((1, 2, 3))

    def generator(self, *numbers: int) -> torch.Generator:
        """Returns a CPU generator that is a function of the seed and the numbers."""
        seed = self.seed
        for number in (*numbers, self.global_rank):
            seed = (seed * 1_000_003 + number + 1) % (1 << 62)
        return torch.Generator().manual_seed(seed)

    def on_train_batch_start(self, batch: Mapping[str, Any], batch_idx: int) -> None:  # noqa: ARG002
        """Measures the scale factor where it is not known yet."""
        if self.scale_factor == 0:
            self.scale_factor.fill_(1.0)
            self.scale_factor.copy_(1.0 / self.to_latent(batch[self.image_key]).std())
            LOG.info("scale factor measured on the first batch: %.5f", float(self.scale_factor))

    def training_latents(self, batch: Mapping[str, Any], generator: torch.Generator) -> Tensor:
        """Returns the latents ``[B, C, h, w]`` of a training batch, from memory where they are kept there."""
        images = batch[self.image_key]
        if self._latents is None:
            return self.to_latent(images, generator)
        new = [i for i, name in enumerate(batch["id"]) if name not in self._latents]
        if new:
            made = self.to_latent(images[new]).float().cpu()
            self._latents.update({batch["id"][i]: latent for i, latent in zip(new, made, strict=True)})
        return torch.stack([self._latents[name] for name in batch["id"]]).to(self.device)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Returns the mean loss of a batch at random times."""
        generator = self.generator(0, self.global_step, batch_idx)
        latent = self.training_latents(batch, generator)
        t = torch.randint(len(self.schedule), (len(latent),), generator=generator).to(latent.device)
        noise = torch.randn(latent.shape, generator=generator).to(latent)
        context = self.drop_context(self.context(batch), generator)
        loss = self.loss(latent, context, t, noise).mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Takes a step and moves the running average, before any callback can store the two."""
        super().optimizer_step(*args, **kwargs)
        if self.model_ema is not None:
            self.model_ema(self.model)

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Logs the loss on held-out images at the same times and noises every time, with and without averaging."""
        generator = self.generator(1, batch_idx)
        latent = self.to_latent(batch[self.image_key])
        n, total = len(latent), len(self.schedule)
        t = (
            ((torch.arange(n) + torch.rand(n, generator=generator)) / n * total)
            .long()
            .clamp(max=total - 1)
            .to(latent.device)
        )
        noise = torch.randn(latent.shape, generator=generator).to(latent)
        context = self.context(batch)
        values = {"val/loss": self.loss(latent, context, t, noise).mean()}
        if self.model_ema is not None:
            with self.ema_scope():
                values["val/loss_ema"] = self.loss(latent, context, t, noise).mean()
        self.log_dict(values, prog_bar=True, batch_size=n)

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Logs the figures of validation on the test set."""
        self.validation_step(batch, batch_idx)

    @torch.no_grad()
    def sample(
        self,
        context: Tensor | None,
        latent_shape: Sequence[int],
        seeds: Sequence[int],
        *,
        sampler: str = "ddim",
        steps: int = 50,
        scale: float = 1.0,
        null: Tensor | None = None,
        eta: float = 0.0,
    ) -> Tensor:
        """Returns images ``[B, 3, H, W]`` in [-1, 1], image i from ``seeds[i]`` alone.

        Args:
            context: ``[B, L, D]`` or none.
            latent_shape: ``(C, h, w)``.
            seeds: one an image.
            sampler: a name in ``SAMPLERS``.
            steps: number of denoising steps.
            scale: of guidance; 1 for none.
            null: the context that means nothing, for guidance.
            eta: share of fresh noise a step.

        Raises:
            ValueError: an unknown sampler, or not one seed an image.
        """
        if sampler not in SAMPLERS:
            raise ValueError(
                f"unknown sampler '{sampler}'{nearest(sampler, SAMPLERS) or ', expected ' + ', '.join(SAMPLERS)}"
            )
        if context is not None and len(context) != len(seeds):
            raise ValueError(f"got {len(seeds)} seeds for {len(context)} contexts, expected one each")
        x = seeded_noise(seeds, latent_shape, self.device)
        denoise = self.denoiser(context, null, scale)
        noise = seeded_step_noise(seeds) if eta or sampler == "ddpm" else None
        options = {"eta": eta, "noise": noise} if sampler != "ddpm" else {"noise": noise}
        return self.to_image(SAMPLERS[sampler](denoise, x, self.schedule, steps, **options))

    @torch.no_grad()
    def log_images(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Returns columns of a grid: images, reconstructions, and samples with the averaged weights."""
        images = batch[self.image_key]
        latent = self.to_latent(images)
        with self.ema_scope():
            steps = min(25, len(self.schedule))
            samples = self.sample(self.context(batch), latent.shape[1:], range(len(images)), steps=steps)
        return {"inputs": images, "reconstructions": self.to_image(latent), "samples": samples}

    def configure_optimizers(self) -> Any:
        """Returns AdamW over the U-Net, with the configured factor by step."""
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        if self.scheduler_config is None:
            return {"optimizer": optimizer}
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, instantiate_from_config(self.scheduler_config))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
