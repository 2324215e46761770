"""Training of an autoencoder against a patch discriminator: two optimisers, one step each (Esser et al. 2021).

Images are ``[B, 3, H, W]`` in [-1, 1]. Lightning's trainer cannot clip or accumulate gradients with two optimisers, so
the model does both, with the trainer's settings.
"""

from __future__ import annotations

import contextlib
import logging
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn

from ldm.checkpoint import average_as_weights, load_weights, read_weights
from ldm.lr_scheduler import StepSchedule
from ldm.metrics import psnr, ssim
from ldm.models.training_data import check_training_data
from ldm.modules.diffusionmodules.model import Decoder, Encoder
from ldm.modules.ema import LitEma
from ldm.modules.losses.adversarial import AdversarialLoss
from ldm.parallel import counted, means, rank, summed
from ldm.util import check_params, get_obj_from_str, instantiate_from_config

LOG = logging.getLogger(__name__)


class AdversarialAutoencoder(pl.LightningModule):
    """Encoder, decoder and their training. A subclass adds the bottleneck and then calls :meth:`complete`.

    Args:
        ddconfig: arguments of encoder and decoder.
        image_key: key of a batch for the images.
        monitor: name of the logged value that picks the best checkpoint.
        colorize_nlabels: number of channels of label maps, which are shown in random colours.
        batch_resize_range: smallest and largest side; each training batch is resized so that its shorter side is one of
            the sides between them, in steps of 16 pixels.
        scheduler_config: factor of the learning rate by step.
        learning_rate: of Adam, for generator and discriminator.
        lr_g_factor: factor of the generator's learning rate.
        betas: of Adam, for the generator; those of the discriminator are (0.5, 0.9).

    Raises:
        ValueError: unknown networks, or sides that do not fit them.
    """

    loss: Any

    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        *,
        image_key: str = "image",
        monitor: str | None = None,
        colorize_nlabels: int | None = None,
        batch_resize_range: Sequence[int] | None = None,
        scheduler_config: Mapping[str, Any] | None = None,
        learning_rate: float = 4.5e-6,
        lr_g_factor: float = 1.0,
        betas: Sequence[float] = (0.5, 0.9),
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        check_params("ddconfig", Encoder, ddconfig)
        self.in_channels, self.out_channels = int(ddconfig["in_channels"]), int(ddconfig["out_ch"])
        if min(self.in_channels, self.out_channels) < 1:
            given = f"in_channels={self.in_channels}, out_ch={self.out_channels}"
            raise ValueError(f"ddconfig: got {given}, expected at least 1 of each, such as 3 for colours")
        self.encoder = Encoder(**ddconfig)
        self.decoder = Decoder(**ddconfig)
        self.downsampling = 2 ** (len(ddconfig["ch_mult"]) - 1)
        self.image_key, self.monitor = image_key, monitor
        self.resize_sides = self.sides_between(*batch_resize_range) if batch_resize_range is not None else None
        self.scheduler_config, self.learning_rate, self.lr_g_factor = scheduler_config, learning_rate, lr_g_factor
        self.betas = (float(betas[0]), float(betas[1]))
        self.model_ema: LitEma | None = None
        self._refused: tuple[float | None, int] = None, 1
        self.latent_sums = torch.zeros(3, device="cpu")
        if colorize_nlabels is not None:
            self.register_buffer("colorize", torch.randn(3, colorize_nlabels, 1, 1))

    def complete(
        self,
        lossconfig: Mapping[str, Any] | None,
        ckpt_path: str | None,
        ignore_keys: Sequence[str],
        use_ema: bool = False,
    ) -> None:
        """Adds the running average of the networks and the loss, and loads the initial weights.

        Args:
            lossconfig: the loss; ``torch.nn.Identity`` or None for a model that only encodes and decodes.
            ckpt_path: ``.ckpt`` or ``.safetensors`` file of the initial weights, in which the loss's may be missing. If
                it has a running average and ``use_ema`` is false, the average replaces the weights; if it has none and
                ``use_ema`` is true, the average starts at the weights.
            ignore_keys: beginnings of names that are not loaded from the checkpoint.
            use_ema: keep a running average of the weights, and validate with it.
        """
        if use_ema:
            self.model_ema = LitEma(self)  # made before the loss, which it does not follow
        self.loss = self._loss(lossconfig) if lossconfig else nn.Identity()
        if not ckpt_path:
            return
        state, begins = read_weights(ckpt_path), tuple(ignore_keys)
        if self.model_ema is None:
            state = average_as_weights(state)
        state = {name: value for name, value in state.items() if not name.startswith(begins)}
        allow = ["loss.*", *(f"{begin}*" for begin in begins)]
        averaged = any(name.startswith("model_ema.") for name in state)
        load_weights(self, state, source=ckpt_path, allow=allow if averaged else [*allow, "model_ema.*"])
        if self.model_ema is not None and not averaged:
            self.model_ema.restart(self)

    def _loss(self, config: Mapping[str, Any]) -> Any:
        """Returns the loss of a config, whose discriminator sees the channels of a reconstruction.

        Raises:
            ValueError: the config gives the discriminator other channels.
        """
        loss, name = get_obj_from_str(config["target"]) if "target" in config else None, "disc_in_channels"
        if not (isinstance(loss, type) and issubclass(loss, AdversarialLoss)):
            return instantiate_from_config(config)
        given = (config.get("params") or {}).get(name, self.out_channels)
        if given != self.out_channels:
            raise ValueError(
                f"lossconfig: got {name}={given}, expected the {self.out_channels} channels of out_ch in ddconfig; "
                f"leave out {name}"
            )
        return instantiate_from_config(config, **{name: given})

    @abstractmethod
    def bottleneck(self, images: Tensor, batch_idx: int) -> tuple[Tensor, Any]:
        """Returns the reconstruction ``[B, 3, H, W]`` of a training batch, and further input for the loss."""

    @abstractmethod
    def latent(self, images: Tensor) -> Tensor:
        """Returns the latent ``[B, C, h, w]``, as a diffusion model is trained on it."""

    @abstractmethod
    def restore(self, latent: Tensor) -> Tensor:
        """Returns the image ``[B, 3, H, W]`` of a latent, for validation."""

    def reconstruct(self, images: Tensor) -> Tensor:
        """Returns reconstructions ``[B, 3, H, W]`` by way of the latent that a diffusion model is trained on."""
        return self.restore(self.latent(images))

    def sides_between(self, low: int, high: int) -> range:
        """Returns the sides from the smallest to the largest, 16 pixels apart.

        Raises:
            ValueError: the largest is not one of them, or one is no multiple of the downsampling factor.
        """
        sides = range(low, high + 1, 16)
        if low < 1 or high not in sides or any(side % self.downsampling for side in sides):
            raise ValueError(
                f"batch_resize_range: got [{low}, {high}], expected [smallest, largest], a multiple of 16 apart, with "
                f"every 16th side divisible by {self.downsampling}"
            )
        return sides

    def check_sides(self, images: Tensor) -> None:
        """Checks that every halving of the encoder is exact.

        Raises:
            ValueError: the image sides are no multiple of the downsampling factor.
        """
        if images.ndim != 4 or any(side % self.downsampling for side in images.shape[2:]):
            raise ValueError(
                f"image: got {tuple(images.shape)}, expected [B, 3, H, W] with sides divisible by {self.downsampling}"
            )

    @property
    def last_layer(self) -> Tensor:
        """The decoder's last weight, where the two losses are balanced."""
        return self.decoder.conv_out.weight

    def configure_callbacks(self) -> list[Any]:
        """Hides the settings for clipping and accumulation from the trainer's checks; adds no callback."""
        self._refused = self.trainer.gradient_clip_val, self.trainer.accumulate_grad_batches
        self.trainer.gradient_clip_val, self.trainer.accumulate_grad_batches = None, 1
        return []

    def setup(self, stage: str) -> None:
        """Checks before training that data, loss and precision fit, and configures training on several devices.

        Raises:
            ValueError: the pictures have other channels or sides than the networks read, there is no loss, or the
                precision is float16, whose gradient scaling needs one optimiser.
        """
        self.trainer.gradient_clip_val, self.trainer.accumulate_grad_batches = self._refused
        remedy = f"in_channels and out_ch in ddconfig instead of {self.in_channels}"
        multiple = self.downsampling if self.resize_sides is None else 1
        check_training_data(self.trainer, self.image_key, self.in_channels, remedy, multiple=multiple)
        if stage != "fit":
            return
        if not hasattr(self.loss, "generator"):
            raise ValueError(
                f"the loss is {type(self.loss).__name__}, which trains nothing; set model.params.lossconfig"
            )
        if self.in_channels != self.out_channels:
            raise ValueError(
                f"ddconfig: got in_channels={self.in_channels}, out_ch={self.out_channels}, expected equal numbers, as "
                "reconstructions are compared with images"
            )
        if self.trainer.precision == "16-mixed":
            raise ValueError("precision: got 16-mixed, expected bf16-mixed or 32 for a model with two optimisers")
        if isinstance(self.trainer.strategy, DDPStrategy):  # in each backward pass, one network has no part
            self.trainer.strategy._ddp_kwargs.setdefault("find_unused_parameters", True)
        LOG.info("distance of reconstructions: %s", self.loss.describe())

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Adds the gradients of a batch, and takes a step with those of ``accumulate_grad_batches`` batches.

        The discriminator is trained from step ``disc_start`` on.
        """
        step, parts = self.global_step, self.trainer.accumulate_grad_batches
        images = self.resized(batch[self.image_key], batch_idx)
        # Dropout draws from torch's global generator, which no checkpoint holds.
        torch.manual_seed(int(torch.randint(1 << 62, (), generator=self.generator(batch_idx))) + rank())
        reconstruction, beside = self.bottleneck(images, batch_idx)
        self.loss.discriminator.requires_grad_(False)
        loss, log = self.loss.generator(images, reconstruction, beside, self.last_layer, step)
        self.manual_backward(loss / parts)
        self.loss.discriminator.requires_grad_(True)
        if step >= self.loss.disc_start:
            loss, more = self.loss.discriminate(images, reconstruction)
            log |= more
            self.manual_backward(loss / parts)
        if (batch_idx + 1) % parts == 0 or self.trainer.is_last_batch:
            self.take_step(step >= self.loss.disc_start)
        log = means(log)
        self.log("train/loss", log.pop("total_loss"), prog_bar=True)
        self.log_dict({f"train/{name}": value for name, value in log.items()})

    def take_step(self, adversarial: bool) -> None:
        """Moves the generator, where asked also the discriminator, by their gradients; only the first are counted."""
        optimizers: Any = self.optimizers()
        generator, discriminator = optimizers
        generator.step()
        generator.zero_grad()
        if adversarial:
            # The bare optimiser, so that Lightning's global_step counts generator steps only.
            self.clip_gradients(discriminator.optimizer)
            discriminator.optimizer.step()
            discriminator.zero_grad()
        schedulers: Any = self.lr_schedulers()
        for scheduler in schedulers or []:
            scheduler.step()
        if self.model_ema is not None:
            self.model_ema(self)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clips the generator's gradients, after the callbacks have seen those of both networks as they are."""
        self.clip_gradients(optimizer)

    def resized(self, images: Tensor, batch_idx: int) -> Tensor:
        """Returns a training batch at a side of the range, drawn by the step; the first ones at the largest.

        The longer side keeps its ratio to the shorter one, up to the multiple that the encoder needs.
        """
        if self.resize_sides is None:
            return images
        side = self.resize_sides[-1]
        if self.global_step > 4:
            draw = torch.randint(len(self.resize_sides), (), generator=self.generator(batch_idx))
            side = self.resize_sides[int(draw)]
        step, shorter = self.downsampling, min(images.shape[2:])
        size = [side if each == shorter else step * round(each * side / shorter / step) for each in images.shape[2:]]
        return images if size == list(images.shape[2:]) else F.interpolate(images, size, mode="bicubic")

    def generator(self, batch_idx: int) -> torch.Generator:
        """Returns a CPU generator that is a function of step and batch, so that a resumed run goes on alike."""
        return torch.Generator().manual_seed(self.global_step * 1_000_003 + 10_007 * batch_idx)

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:  # noqa: ARG002
        """Logs reconstruction loss and PSNR and SSIM of held-out images."""
        images = batch[self.image_key]
        with self.averaged():
            latent = self.latent(images)
            self.observe(latent)
            reconstruction = self.restore(latent).float()
        shown = reconstruction.clamp(-1, 1)
        values = {"rec_loss": (reconstruction - images).abs().mean()}
        values |= {"psnr": psnr(images, shown).mean(), "ssim": ssim(images, shown).mean()}
        named = {f"val/{name}": value for name, value in values.items()}
        self.log_dict(named, prog_bar=True, batch_size=counted(len(images)), sync_dist=True)

    def observe(self, latent: Tensor) -> None:
        """Adds the latents ``[B, C, h, w]`` of held-out images to the statistics of a validation."""
        sums = torch.stack(
            [torch.tensor(1.0, device=latent.device), latent.float().mean(), latent.float().square().mean()]
        )
        self.latent_sums = self.latent_sums.to(latent.device) + len(latent) * sums

    def on_validation_epoch_end(self) -> None:
        """Logs mean and standard deviation of all latents; the inverse of the latter scales them to unit variance."""
        count, total, squares = summed(self.latent_sums)
        mean = total / count
        self.log_dict(
            {"val/latent_mean": mean, "val/latent_std": (squares / count - mean.square()).clamp(min=0).sqrt()}
        )
        self.latent_sums = torch.zeros(3, device="cpu")

    def on_test_epoch_end(self) -> None:
        """Logs what the end of a validation logs."""
        self.on_validation_epoch_end()

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Logs the figures of validation on the test set."""
        self.validation_step(batch, batch_idx)

    @torch.no_grad()
    def log_images(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Returns columns of a grid: the images and their reconstructions."""
        images = batch[self.image_key]
        with self.averaged():
            return {"inputs": self.shown(images), "reconstructions": self.shown(self.reconstruct(images))}

    def shown(self, images: Tensor) -> Tensor:
        """Returns ``[B, 3, H, W]`` in [-1, 1]: label maps in colours, images as they are."""
        if "colorize" not in self._buffers:
            return images
        colours = F.conv2d(images, self.get_buffer("colorize"))
        low, high = colours.aminmax()
        return 2 * (colours - low) / (high - low) - 1

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Gives the model its averaged weights inside the ``with`` block, where it keeps an average."""
        with self.model_ema.applied(self) if self.model_ema is not None else contextlib.nullcontext():
            yield

    def generator_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of all but the loss, without frozen ones."""
        return [p for name, p in self.named_parameters() if p.requires_grad and not name.startswith("loss.")]

    def configure_optimizers(self) -> tuple[list[Any], list[Any]]:
        """Returns Adam for the generator and for the discriminator, with the configured factor by step."""
        rate = self.learning_rate
        optimizers = [
            torch.optim.Adam(self.generator_parameters(), lr=self.lr_g_factor * rate, betas=self.betas),
            torch.optim.Adam(self.loss.discriminator.parameters(), lr=rate, betas=(0.5, 0.9)),
        ]
        if self.scheduler_config is None:
            return optimizers, []
        factor = instantiate_from_config(self.scheduler_config)
        return optimizers, [StepSchedule(optimizer, factor) for optimizer in optimizers]
