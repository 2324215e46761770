"""First stages: autoencoders between images ``[B, 3, H, W]`` in [-1, 1] and latents ``[B, C, h, w]``.

A first stage has ``encode(image) -> latent`` and ``decode(latent) -> image``. The latent of a VQ model is that before
quantisation; ``decode`` quantises it first, as the codebook belongs to the decoder (Rombach et al. 2022, section 4.1).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from taming.modules.vqvae.quantize import VectorQuantizer2
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from ldm.checkpoint import load_weights, read_weights
from ldm.modules.diffusionmodules.model import Decoder, Encoder
from ldm.modules.losses.vqperceptual import codebook_statistics
from ldm.util import instantiate_from_config

LOG = logging.getLogger(__name__)


class VQModel(pl.LightningModule):
    """Vector-quantised autoencoder (Esser et al. 2021), trained against a patch discriminator.

    Args:
        ddconfig: arguments of encoder and decoder.
        n_embed: number of codes.
        embed_dim: width of a code.
        lossconfig: the loss; ``torch.nn.Identity`` (or none) for a model that only encodes and decodes.
        ckpt_path: weights to start from, ``.ckpt`` or ``.safetensors``; the loss's own weights may be absent.
        image_key: where a batch holds its images.
        monitor: logged value that picks the best checkpoint.
        beta: weight of the commitment term.
        warm_up_steps: train as a plain autoencoder for so many steps, then set the codes by k-means over latents:
            a codebook from a cold start learns slowly and leaves codes unused.
        scheduler_config: factor of the learning rate by step.
        learning_rate: of Adam, for generator and discriminator.
        betas: of Adam, for the generator; the discriminator has (0.5, 0.9).
    """

    loss: Any

    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        n_embed: int,
        embed_dim: int,
        lossconfig: Mapping[str, Any] | None = None,
        ckpt_path: str | None = None,
        image_key: str = "image",
        monitor: str | None = None,
        beta: float = 0.25,
        warm_up_steps: int = 0,
        scheduler_config: Mapping[str, Any] | None = None,
        learning_rate: float = 4.5e-6,
        betas: Sequence[float] = (0.5, 0.9),
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.encoder = Encoder(**ddconfig)
        self.decoder = Decoder(**ddconfig)
        self.quantize = VectorQuantizer2(n_embed, embed_dim, beta=beta)
        self.quant_conv = nn.Conv2d(ddconfig["z_channels"], embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, ddconfig["z_channels"], 1)
        self.loss = instantiate_from_config(lossconfig) if lossconfig else nn.Identity()
        self.downsampling = 2 ** (len(ddconfig["ch_mult"]) - 1)
        self.image_key, self.monitor, self.warm_up_steps = image_key, monitor, warm_up_steps
        self.scheduler_config, self.learning_rate = scheduler_config, learning_rate
        self.betas = (float(betas[0]), float(betas[1]))
        self._recent: list[Tensor] = []
        if ckpt_path:
            load_weights(self, read_weights(ckpt_path), source=ckpt_path, allow=("loss.*",))

    def encode(self, image: Tensor) -> Tensor:
        """Returns the latent ``[B, C, h, w]`` before quantisation.

        Raises:
            ValueError: the image sides are no multiple of the downsampling factor.
        """
        if image.ndim != 4 or any(side % self.downsampling for side in image.shape[2:]):
            raise ValueError(
                f"image: got {tuple(image.shape)}, expected [B, 3, H, W] with sides divisible by {self.downsampling}"
            )
        return self.quant_conv(self.encoder(image))

    def decode(self, latent: Tensor, *, quantize: bool = True) -> Tensor:
        """Returns the image ``[B, 3, H, W]`` of a latent, which is quantised first."""
        return self.decoder(self.post_quant_conv(self.nearest_codes(latent)[0] if quantize else latent))

    def nearest_codes(self, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the quantised latent ``[B, C, h, w]``, the codebook loss ``[]`` and code numbers ``[B h w]``."""
        with torch.autocast(latent.device.type, enabled=False):  # distances between codes need float32
            quantized, loss, (_, _, indices) = self.quantize(latent.float())
        return quantized, loss, indices

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns reconstruction ``[B, 3, H, W]``, codebook loss ``[]`` and code numbers ``[B h w]``."""
        quantized, loss, indices = self.nearest_codes(self.encode(image))
        return self.decode(quantized, quantize=False), loss, indices

    @property
    def last_layer(self) -> Tensor:
        """The decoder's last weight, where the two losses are balanced."""
        return self.decoder.conv_out.weight

    def setup(self, stage: str) -> None:
        """Checks, before training, that the model can be trained as it is set up.

        Raises:
            ValueError: no loss, or float16, whose scaled gradients need one optimiser.
        """
        if stage == "fit" and not hasattr(self.loss, "generator"):
            raise ValueError(
                f"the loss is {type(self.loss).__name__}, which trains nothing; set model.params.lossconfig"
            )
        if stage == "fit" and self.trainer.precision == "16-mixed":
            raise ValueError("precision: got 16-mixed, expected bf16-mixed or 32 for a model with two optimisers")

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:  # noqa: ARG002 (Lightning's signature)
        """One step of the generator, from ``disc_start`` on also of the discriminator; only the first are counted."""
        images, step = batch[self.image_key], self.global_step
        optimizers: Any = self.optimizers()
        generator, discriminator = optimizers
        if step < self.warm_up_steps:
            latent = self.encode(images)
            reconstruction, codebook_loss = self.decode(latent, quantize=False), latent.new_zeros(())
            self._remember(latent)
        else:
            if self._recent:
                self.set_codes(torch.cat([latent.to(images.device) for latent in self._recent]))
                self._recent.clear()
            reconstruction, codebook_loss, indices = self(images)
            perplexity, used = codebook_statistics(indices, self.quantize.n_e)
            self.log_dict({"train/perplexity": perplexity, "train/cluster_usage": used})
        loss, log = self.loss.generator(images, reconstruction, codebook_loss, self.last_layer, step)
        generator.zero_grad()
        self.manual_backward(loss, inputs=self.generator_parameters())
        generator.step()
        if step >= self.loss.disc_start:
            loss, more = self.loss.discriminate(images, reconstruction)
            log |= more
            # The bare optimiser, so that Lightning's global_step counts generator steps only.
            discriminator.optimizer.zero_grad()
            self.manual_backward(loss)
            discriminator.optimizer.step()
        schedulers: Any = self.lr_schedulers()
        for scheduler in schedulers or []:
            scheduler.step()
        self.log("train/loss", log["total_loss"], prog_bar=True)
        self.log_dict({f"train/{name}": value for name, value in log.items()})

    def _remember(self, latent: Tensor, keep: int = 64) -> None:
        self._recent = [*self._recent[-keep + 1 :], latent.detach().movedim(1, -1).flatten(0, 2)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the latents of the warm-up, from which a resumed run sets its codes."""
        checkpoint["recent_latents"] = [latent.cpu() for latent in self._recent]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the latents of the warm-up back."""
        self._recent = list(checkpoint.get("recent_latents", []))

    @torch.no_grad()
    def set_codes(self, latents: Tensor, rounds: int = 20) -> None:
        """Sets the codebook to the means of a k-means clustering.

        Args:
            latents: ``[N, C]`` with N at least the number of codes.
            rounds: of Lloyd's algorithm; an empty cluster restarts at a random latent.
        """
        generator = torch.Generator().manual_seed(0)
        size = self.quantize.n_e
        if len(latents) < size:
            raise ValueError(
                f"got {len(latents)} latents to make {size} codes from; use a larger batch or more warm_up_steps"
            )
        latents = latents[torch.randperm(len(latents), generator=generator)[: 100 * size].to(latents.device)].float()
        codes = latents[:size].clone()
        for _ in range(rounds):
            nearest = torch.cat([torch.cdist(part, codes).argmin(1) for part in latents.split(8192)])
            count = torch.bincount(nearest, minlength=size)
            total = torch.zeros_like(codes).index_add_(0, nearest, latents)
            codes = total / count.clamp(min=1)[:, None]
            empty = (count == 0).nonzero().flatten()
            codes[empty] = latents[torch.randint(len(latents), (len(empty),), generator=generator).to(latents.device)]
        self.quantize.embedding.weight.copy_(codes)
        LOG.info("set %d codes from %d latents", size, len(latents))

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:  # noqa: ARG002
        """Logs reconstruction loss and PSNR and SSIM of held-out images."""
        images = batch[self.image_key]
        if self.global_step < self.warm_up_steps:
            reconstruction = self.decode(self.encode(images), quantize=False)
        else:
            reconstruction = self(images)[0]
        reconstruction = reconstruction.float()
        squared = F.mse_loss(reconstruction.clamp(-1, 1) / 2, images / 2, reduction="none").mean((1, 2, 3))
        values = {"rec_loss": (reconstruction - images).abs().mean(), "psnr": (-10 * squared.log10()).mean()}
        values["ssim"] = structural_similarity_index_measure(reconstruction.clamp(-1, 1), images, data_range=2.0)
        self.log_dict({f"val/{name}": value for name, value in values.items()}, prog_bar=True, batch_size=len(images))

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Logs the figures of validation on the test set."""
        self.validation_step(batch, batch_idx)

    @torch.no_grad()
    def log_images(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Returns columns of a grid: the images and their reconstructions."""
        images = batch[self.image_key]
        quantize = self.global_step >= self.warm_up_steps
        return {"inputs": images, "reconstructions": self.decode(self.encode(images), quantize=quantize)}

    def generator_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of all but the loss."""
        return [p for name, p in self.named_parameters() if not name.startswith("loss.")]

    def configure_optimizers(self) -> tuple[list[Any], list[Any]]:
        """Returns Adam for the generator and for the discriminator, with the configured factor by step."""
        groups = (
            (self.generator_parameters(), self.betas),
            (self.loss.discriminator.parameters(), (0.5, 0.9)),
        )
        optimizers = [torch.optim.Adam(group, lr=self.learning_rate, betas=betas) for group, betas in groups]
        if self.scheduler_config is None:
            return optimizers, []
        factor = instantiate_from_config(self.scheduler_config)
        return optimizers, [torch.optim.lr_scheduler.LambdaLR(optimizer, factor) for optimizer in optimizers]


class VQModelInterface(VQModel):
    """CompVis' name for a VQ model that is only used."""


class IdentityFirstStage(nn.Module):
    """No compression: the latent is the image."""

    def encode(self, image: Tensor) -> Tensor:
        """Returns the image."""
        return image

    def decode(self, latent: Tensor) -> Tensor:
        """Returns the latent."""
        return latent
