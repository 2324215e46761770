"""A diffusion model of images, which is also the base class of latent diffusion.

Images ``[B, C, H, W]`` in [-1, 1], times ``[B] int64`` in [0, T). "Latent" below means the input of the U-Net, which is
the image itself in this class.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ldm.checkpoint import load_weights, read_weights
from ldm.lr_scheduler import StepSchedule
from ldm.models.diffusion.condition import Condition, Hybrid
from ldm.models.diffusion.editing import Edit
from ldm.models.diffusion.guidance import Denoiser, autoguide, guide
from ldm.models.diffusion.objective import Objective
from ldm.models.diffusion.samplers import SAMPLERS, USUAL, USUAL_STEPS, clip_x0
from ldm.models.diffusion.schedule import NoiseSchedule, check_parameterization
from ldm.models.diffusion.stepping import Watch, seeded_generator, seeded_noise, seeded_step_noise, watched
from ldm.models.diffusion.wrapper import DiffusionWrapper, compile_network
from ldm.models.training_data import check_training_data
from ldm.modules.attention import ProjectedContext
from ldm.modules.ema import LitEma
from ldm.parallel import counted, means, own, processes, randn, rank, summed
from ldm.util import instantiate_from_config, nearest

LOG = logging.getLogger(__name__)


class DDPM(pl.LightningModule):
    """A denoiser of images (Ho et al. 2020).

    The arguments up to ``logvar_init`` are CompVis'. Of these, ``image_size``, ``channels``, ``log_every_t`` and
    ``use_positional_encodings`` are only attributes for other code to read, as is ``monitor`` for ``main.py``.

    Args:
        unet_config: the U-Net.
        timesteps: T.
        beta_schedule: ``linear``, ``cosine``, ``sqrt_linear`` or ``sqrt``, see ``NoiseSchedule.from_name``.
        loss_type: ``l2`` or ``l1``.
        ckpt_path: file of the initial weights.
        ignore_keys: beginnings of names that are not loaded from that file.
        load_only_unet: load only the U-Net from that file.
        monitor: name of the logged value that picks the best checkpoint.
        use_ema: keep a running average of the weights.
        first_stage_key: key of a batch for the images.
        image_size: side of a latent.
        channels: number of channels of a latent.
        log_every_t: steps between the intermediate results that CompVis' samplers keep.
        clip_denoised: in sampling, clamp every estimate of x0 to [-1, 1].
        linear_start: first value of the schedule, see ``NoiseSchedule.from_name``.
        linear_end: last value of the schedule.
        cosine_s: offset of the cosine schedule.
        given_betas: T variances in place of a named schedule.
        zero_terminal_snr: give the last time no signal, see ``NoiseSchedule.with_zero_terminal_snr``.
        original_elbo_weight: weight of the variational bound in the loss.
        v_posterior: weight of beta in the variance of ancestral sampling, and thus in that bound.
        l_simple_weight: weight of the plain error in the loss.
        conditioning_key: see :class:`DiffusionWrapper`.
        parameterization: prediction of the U-Net: ``eps``, ``x0`` or ``v``.
        scheduler_config: factor of the learning rate by step.
        use_positional_encodings: without effect, as in CompVis' code.
        learn_logvar: learn the log variance of the error at every time.
        logvar_init: initial log variance, or the constant one.
        min_snr_gamma: limits the weight of the least noisy times, see ``NoiseSchedule.min_snr_weights``.
        ema_decay: of the running average.
        learning_rate: learning rate of AdamW.
        weight_decay: weight decay of AdamW.
        compile: compile the U-Net with ``torch.compile`` at its first use; a string names a backend.
        seed: of noise and times; step n uses (seed, n), so that a resumed run repeats none.

    Raises:
        ValueError: unknown parameterization, schedule or loss, or the weights do not fit.
    """

    # Patterns of names that a checkpoint may lack or have in excess.
    optional_names: tuple[str, ...] = ("loss.*",)
    model_ema: LitEma | None
    logvar: Tensor
    lvlb_weights: Tensor | None
    time_weights: Tensor | None

    def __init__(
        self,
        unet_config: Mapping[str, Any],
        timesteps: int = 1000,
        beta_schedule: str = "linear",
        loss_type: str = "l2",
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        load_only_unet: bool = False,
        monitor: str = "val/loss",
        use_ema: bool = True,
        first_stage_key: str = "image",
        image_size: int = 256,
        channels: int = 3,
        log_every_t: int = 100,
        clip_denoised: bool = True,
        linear_start: float = 1e-4,
        linear_end: float = 2e-2,
        cosine_s: float = 8e-3,
        given_betas: Sequence[float] | None = None,
        original_elbo_weight: float = 0.0,
        v_posterior: float = 0.0,
        l_simple_weight: float = 1.0,
        conditioning_key: str | None = None,
        parameterization: str = "eps",
        scheduler_config: Mapping[str, Any] | None = None,
        use_positional_encodings: bool = False,
        learn_logvar: bool = False,
        logvar_init: float = 0.0,
        *,
        zero_terminal_snr: bool = False,
        min_snr_gamma: float | None = None,
        ema_decay: float = 0.9999,
        learning_rate: float = 1e-4,
        weight_decay: float = 0.01,
        compile: bool | str = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_parameterization(parameterization)
        self.objective = Objective(loss_type, l_simple_weight, original_elbo_weight)
        with torch.device("cpu"):  # values, not weights, which are known also if the model is on the meta device
            if given_betas is None:
                schedule = NoiseSchedule.from_name(beta_schedule, timesteps, linear_start, linear_end, cosine_s)
            else:
                schedule = NoiseSchedule.from_betas(torch.as_tensor(given_betas, dtype=torch.float64))
            if zero_terminal_snr:
                schedule = schedule.with_zero_terminal_snr(parameterization)
            self.schedule = replace(schedule, v_posterior=v_posterior)
            for name, value in self.schedule.buffers().items():
                self.register_buffer(name, value)
            bounded = parameterization != "v" or original_elbo_weight  # there is no such bound for v
            weights = self.schedule.lvlb_weights(parameterization) if bounded else None
            self.register_buffer("lvlb_weights", weights, persistent=False)
            weights = None if min_snr_gamma is None else self.schedule.min_snr_weights(parameterization, min_snr_gamma)
            self.register_buffer("time_weights", weights, persistent=False)
            logvar = torch.full((len(self.schedule),), float(logvar_init))
        if learn_logvar:
            self.logvar = nn.Parameter(logvar)
        else:
            self.register_buffer("logvar", logvar, persistent=False)
        self.model = self.wrapped(unet_config, conditioning_key)
        compile_network(self.model.diffusion_model, compile)
        self.model_ema = LitEma(self.model, decay=ema_decay) if use_ema else None
        self.parameterization, self.clip_denoised, self.seed = parameterization, clip_denoised, seed
        self.first_stage_key, self.monitor, self.scheduler_config = first_stage_key, monitor, scheduler_config
        self.image_size, self.channels, self.log_every_t = image_size, channels, log_every_t
        self.use_positional_encodings = use_positional_encodings
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        if ckpt_path:
            self.init_from_checkpoint(ckpt_path, ignore_keys, load_only_unet)

    def wrapped(self, unet_config: Mapping[str, Any], conditioning_key: str | None) -> DiffusionWrapper:
        """Returns the U-Net in its wrapper; subclasses add further networks, which are trained and averaged alike."""
        return DiffusionWrapper(unet_config, conditioning_key)

    @property
    def image_channels(self) -> int:
        """The number of channels of an image; of the U-Net's input, a condition may be a part."""
        network, shared = self.model.diffusion_model, self.model.conditioning_key in ("concat", "hybrid")
        return int(network.out_channels if shared else network.in_channels)

    @property
    def side_multiple(self) -> int:
        """The number of pixels that divides the sides of images: by so much the networks reduce them."""
        return int(2 ** (getattr(self.model.diffusion_model, "levels", 1) - 1))

    def setup(self, stage: str) -> None:  # noqa: ARG002 (Lightning's signature)
        """Checks before training that the pictures fit the networks.

        Raises:
            ValueError: they have other channels, or sides that do not divide.
        """
        channels, multiple = self.image_channels, self.side_multiple
        remedy = f"give the model a first stage or a U-Net of other channels than {channels}"
        check_training_data(self.trainer, self.first_stage_key, channels, remedy, multiple=multiple)

    def init_from_checkpoint(self, path: str, ignore_keys: Sequence[str] = (), load_only_unet: bool = False) -> None:
        """Loads weights; if the file has no running average, the average starts at the weights."""
        ignored = tuple(ignore_keys)
        state = self.adapted({name: v for name, v in read_weights(path).items() if not name.startswith(ignored)})
        if load_only_unet:
            own = {name.removeprefix("model."): value for name, value in state.items()}
            networks = tuple(f"{name}." for name, _ in self.model.named_children())
            unet = {name: value for name, value in own.items() if name.startswith(networks)}
            load_weights(self.model, unet, source=path)
            averaged = False
        else:
            averaged = any(name.startswith("model_ema.") for name in state)
            allow = [*self.optional_names, *(f"{name}*" for name in ignored)]
            if not averaged or self.model_ema is None:
                allow.append("model_ema.*")
            load_weights(self, state, source=path, allow=allow)
        if self.model_ema is not None and not averaged:
            self.model_ema = LitEma(self.model, decay=float(self.model_ema.decay))

    def adapted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns initial weights in the form of this model; subclasses take those of related models, too."""
        return state

    def to_latent(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:  # noqa: ARG002
        """Returns the input of the U-Net for an image, ``[B, C, h, w]``: the image itself."""
        return image

    def to_image(self, latent: Tensor) -> Tensor:
        """Returns the image ``[B, C, H, W]`` of a latent."""
        return latent

    def context(self, batch: Mapping[str, Any]) -> Condition:  # noqa: ARG002 (for subclasses)
        """Returns the condition of a batch for the U-Net; None in this class."""
        return None

    def drop_context(self, context: Condition, generator: torch.Generator) -> Condition:  # noqa: ARG002
        """Returns the context of a training step; subclasses replace some by the null context, for guidance."""
        return context

    def understood(self, context: Condition) -> Condition:
        """Returns the part of another model's condition that this model takes; all of it in this class."""
        return context

    def predict_eps(self, x: Tensor, t: Tensor, context: Condition | ProjectedContext) -> Tensor:
        """Returns the model's estimate of the noise in ``x``, whatever its parameterization."""
        return self.schedule.to_eps(self.parameterization, self.model(x, t, context).to(x.dtype), x, t)

    def denoiser(self, context: Condition, null: Condition = None, scale: float = 1.0, **guidance: Any) -> Denoiser:
        """Returns the denoiser ``(x_t, t) -> eps`` for a condition, with guidance.

        The denoiser is valid until the weights change, because the context is projected here, once for all steps.
        ``guidance`` are further options of :func:`ldm.models.diffusion.guidance.guide`.
        """
        guidance = {"levels": (1 - self.schedule.alphas_cumprod).sqrt(), **guidance}
        denoise = guide(self.predict_eps, context, null, scale, project=self.model.project, **guidance)
        return clip_x0(denoise, self.schedule) if self.clip_denoised else denoise

    def ema_scope(self) -> Any:
        """Returns a context manager within which the averaged weights are in place."""
        return torch.no_grad() if self.model_ema is None else self.model_ema.applied(self.model)

    def losses(self, latent: Tensor, context: Condition, t: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Returns the terms of every sample's loss ``[B]``; ``loss`` is what is minimised, see :class:`Objective`."""
        output = self.model(self.schedule.add_noise(latent, noise, t), t, context)
        target = self.schedule.target(self.parameterization, latent, noise, t)
        weights = [None if table is None else table[t] for table in (self.lvlb_weights, self.time_weights)]
        return self.objective(output, target, self.logvar[t], *weights)

    def generator(self, *numbers: int) -> torch.Generator:
        """Returns a CPU generator that is a function of the seed and the numbers."""
        return seeded_generator(self.seed, *numbers, 0)

    def training_latents(self, batch: Mapping[str, Any], generator: torch.Generator) -> Tensor:
        """Returns the latents ``[B, C, h, w]`` of a training batch."""
        return self.to_latent(batch[self.first_stage_key], generator)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Returns the mean loss of a batch at random times."""
        generator = self.generator(0, self.global_step, batch_idx)
        latent = self.training_latents(batch, generator)
        n = len(latent) * processes()  # draws do not depend on how a batch is spread over processes
        t = own(torch.randint(len(self.schedule), (n,), generator=generator)).to(latent.device)
        noise = randn(latent.shape, generator).to(latent)
        context = self.drop_context(self.context(batch), generator)
        # Dropout draws from torch's global generator, which no checkpoint holds.
        torch.manual_seed(int(torch.randint(1 << 62, (), generator=generator)) + rank())
        terms = {name: value.mean() for name, value in self.losses(latent, context, t, noise).items()}
        for name, value in means(terms).items():
            self.log(f"train/{name}", value, prog_bar=name == "loss")
        return terms["loss"]

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Takes a step and moves the running average, before any callback can store the two."""
        super().optimizer_step(*args, **kwargs)
        if self.model_ema is not None:
            self.model_ema(self.model)

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Logs the loss on held-out images at the same times and noises every time, with and without averaging."""
        generator = self.generator(1, batch_idx)
        latent = self.to_latent(batch[self.first_stage_key])
        n, total = int(summed(torch.tensor(len(latent)))), len(self.schedule)
        spread = (torch.arange(n) + torch.rand(n, generator=generator)) / n * total
        t = own(spread).long().clamp(max=total - 1).to(latent.device)
        noise = own(torch.randn(n, *latent.shape[1:], generator=generator)).to(latent)
        context = self.context(batch)
        values = {f"val/{name}": value.mean() for name, value in self.losses(latent, context, t, noise).items()}
        if self.model_ema is not None:
            with self.ema_scope():
                averaged = self.losses(latent, self.context(batch), t, noise)
            values |= {f"val/{name}_ema": value.mean() for name, value in averaged.items()}
        n = counted(len(latent))
        for name, value in values.items():
            self.log(name, value, prog_bar=name in ("val/loss", "val/loss_ema"), batch_size=n, sync_dist=True)

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Logs the values of validation for the test set."""
        self.validation_step(batch, batch_idx)

    @torch.no_grad()
    def sample(
        self,
        context: Condition,
        latent_shape: Sequence[int],
        seeds: Sequence[int],
        *,
        sampler: str = USUAL,
        steps: int | None = None,
        scale: float = 1.0,
        null: Condition = None,
        eta: float | None = None,
        spacing: str = "uniform",
        weaker: DDPM | None = None,
        weaker_scale: float = 1.0,
        weaker_context: Condition = None,
        edit: Edit | None = None,
        watch: Watch | None = None,
        **guidance: Any,
    ) -> Tensor:
        """Returns images ``[B, C, H, W]`` in [-1, 1], where image i depends on ``seeds[i]`` and its context alone.

        Args:
            context: the condition of each image, or None.
            latent_shape: ``(C, h, w)``.
            seeds: one for each image.
            sampler: a name in ``SAMPLERS``.
            steps: number of denoising steps; by default that of ``USUAL_STEPS`` for the sampler.
            scale: scale of classifier-free guidance; 1 for none.
            null: the null context, which guidance needs.
            eta: amount of new noise in each step; by default the sampler's own.
            spacing: of the steps over time, see ``NoiseSchedule.timesteps``.
            weaker: a smaller or less trained model of the same latents, for autoguidance.
            weaker_scale: scale of autoguidance; 1 for none.
            weaker_context: the condition of the weaker model; by default the part of ``context`` that it takes.
            edit: a picture for image-to-image, or one of which a part is kept (inpainting).
            watch: told of every step, also of those of an inversion, whose preview is one image for all.
            guidance: further options of :func:`ldm.models.diffusion.guidance.guide`.

        Raises:
            ValueError: an unknown sampler, a wrong number of seeds, or an edit that does not fit.
        """
        if sampler not in SAMPLERS:
            raise ValueError(
                f"unknown sampler '{sampler}'{nearest(sampler, SAMPLERS) or ', expected ' + ', '.join(SAMPLERS)}"
            )
        given = context.tokens if isinstance(context, Hybrid) else context
        if given is not None and len(given) != len(seeds):
            raise ValueError(f"got {len(seeds)} seeds for {len(given)} contexts, expected one each")
        x = seeded_noise(seeds, latent_shape, self.device)
        denoise = self.denoiser(context, null, scale, **guidance)
        if weaker is not None:
            shown = weaker.understood(context if weaker_context is None else weaker_context)
            denoise = autoguide(denoise, weaker.denoiser(shown), weaker_scale)
        steps = steps or min(USUAL_STEPS[sampler], len(self.schedule))
        times = self.schedule.timesteps(steps, spacing).tolist()
        options: dict[str, Any] = {"noise": seeded_step_noise(seeds)} | ({} if eta is None else {"eta": eta})
        on_step, before, watching = None, 0, partial(watched, watch, self.to_image)
        if edit is not None:
            backwards = self.denoiser(edit.context)
            x, times, on_step = edit.begin(x, self.schedule, times, seeds, backwards, watching)
            before = len(times) if edit.invert else 0
        options["on_step"] = watching(before + len(times), before, on_step)
        return self.to_image(SAMPLERS[sampler](denoise, x, self.schedule, times, **options) if times else x)

    @torch.no_grad()
    def log_images(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Returns columns of a grid: images, reconstructions, and samples with the averaged weights."""
        images = batch[self.first_stage_key]
        latent = self.to_latent(images)
        with self.ema_scope():
            steps = min(25, len(self.schedule))
            samples = self.sample(self.context(batch), latent.shape[1:], range(len(images)), steps=steps)
        return {"inputs": images, "reconstructions": self.to_image(latent), "samples": samples}

    def trained_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters that are trained."""
        learned = [self.logvar] if isinstance(self.logvar, nn.Parameter) else []
        return [*self.model.parameters(), *learned]

    def configure_optimizers(self) -> Any:
        """Returns AdamW over the trained parameters, with the configured factor by step."""
        parameters = self.trained_parameters()
        fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
        optimizer = torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay, fused=fused)
        # A fused step could unscale the gradients itself; Lightning then refuses to clip them, which comes before.
        optimizer._step_supports_amp_scaling = False
        if self.scheduler_config is None:
            return {"optimizer": optimizer}
        schedule = StepSchedule(optimizer, instantiate_from_config(self.scheduler_config))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
