"""First stages: autoencoders between images ``[B, 3, H, W]`` in [-1, 1] and latents ``[B, C, h, w]``.

A first stage has ``encode(image) -> latent`` and ``decode(latent) -> image``. The latent of a VQ model is that before
quantisation; ``decode`` quantises it first, as the codebook belongs to the decoder (Rombach et al. 2022, section 4.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.loggers import log_histogram
from ldm.models.adversarial import AdversarialAutoencoder
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.modules.quantize import Codebook, CodeUsage
from ldm.parallel import gathered, randn
from ldm.util import check_params


class VQModel(AdversarialAutoencoder):
    """Vector-quantised autoencoder (Esser et al. 2021), trained against a patch discriminator.

    Args:
        ddconfig: arguments of encoder and decoder.
        n_embed: number of codes.
        embed_dim: width of a code.
        lossconfig: the loss; ``torch.nn.Identity`` or None for a model that only encodes and decodes.
        ckpt_path: ``.ckpt`` or ``.safetensors`` file of the initial weights, in which the loss's may be missing.
        ignore_keys: beginnings of names that are not loaded from ``ckpt_path``.
        beta: weight of the commitment term.
        warm_up_steps: number of steps of training as a plain autoencoder, after which k-means over latents initialises
            the codes. A randomly initialised codebook learns slowly and leaves codes unused.
        remap: ``.npy`` file of the codes that are in use; code numbers count only these.
        sane_index_shape: return code numbers as ``[B, h, w]`` instead of ``[B h w]``.
        use_ema: keep a running average of the weights, and validate with it.
        codebook: how the codes are learned: ``kind``, ``decay``, ``restart_every`` of :class:`Codebook`.
        training: the other arguments of :class:`AdversarialAutoencoder`.
    """

    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        n_embed: int,
        embed_dim: int,
        lossconfig: Mapping[str, Any] | None = None,
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        beta: float = 0.25,
        warm_up_steps: int = 0,
        remap: str | None = None,
        sane_index_shape: bool = False,
        use_ema: bool = False,
        codebook: Mapping[str, Any] | None = None,
        **training: Any,
    ) -> None:
        super().__init__(ddconfig, **training)
        if ddconfig.get("double_z", True):
            raise ValueError("ddconfig.double_z: got true, expected false; codes have no variances")
        options = {"n_e": n_embed, "e_dim": embed_dim, "beta": beta, "remap": remap, **(codebook or {})}
        check_params("model.params.codebook", Codebook, options)
        self.quantize = Codebook(**options, sane_index_shape=sane_index_shape)
        self.quant_conv = nn.Conv2d(ddconfig["z_channels"], embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, ddconfig["z_channels"], 1)
        self.warm_up_steps = warm_up_steps
        self._recent: list[Tensor] = []
        # Codes chosen over an epoch of training, over a validation, and since codes were last restarted.
        self.usage = {name: CodeUsage(n_embed) for name in ("train", "val", "restart")}
        self.complete(lossconfig, ckpt_path, ignore_keys, use_ema)

    def encode(self, image: Tensor) -> Tensor:
        """Returns the latent ``[B, C, h, w]`` before quantisation.

        Raises:
            ValueError: the image sides are no multiple of the downsampling factor.
        """
        self.check_sides(image)
        return self.quant_conv(self.encoder(image))

    def decode(self, latent: Tensor, *, quantize: bool = True) -> Tensor:
        """Returns the image ``[B, 3, H, W]`` of a latent, which is quantised first."""
        latent = self.nearest_codes(latent)[0].to(latent.dtype) if quantize else latent
        return self.decoder(self.post_quant_conv(latent))

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
    def warming(self) -> bool:
        """Whether the model is in training and its codes are not initialised yet."""
        fitting = self._trainer is not None and self.trainer.state.fn == "fit"
        return fitting and self.global_step < self.warm_up_steps

    def bottleneck(self, images: Tensor, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Returns reconstruction ``[B, 3, H, W]`` and codebook loss ``[]``; initialises codes after the warm-up."""
        latent = self.encode(images)
        if self.warming:
            self._remember(latent)
            return self.decode(latent, quantize=False), latent.new_zeros(())
        if self._recent:
            self.quantize.cluster(torch.cat([latent.to(images.device) for latent in self._recent]))
            self._recent.clear()
            self._restart_average(None)
        recent, every = self.usage["restart"], self.quantize.restart_every
        if every and recent.batches >= every:
            latents, unused = gathered(latent.detach()).movedim(1, -1).flatten(0, 2), recent.unused()
            self.quantize.restart(latents, unused, self.generator(batch_idx))
            self._restart_average(unused)
            recent.reset()
        quantized, codebook_loss, indices = self.nearest_codes(latent)
        if batch_idx == 0:  # a checkpoint of the last step of an epoch holds the counts of that epoch
            self.usage["train"].reset()
        self.usage["train"].add(indices)
        recent.add(indices)
        return self.decode(quantized, quantize=False), codebook_loss

    def _restart_average(self, rows: Tensor | None) -> None:
        """Makes the running average forget what codes were before they were set; of ``rows [n] bool``, or all."""
        if self.model_ema is not None:
            self.model_ema.restart(self, self.quantize.stored, rows)

    def latent(self, images: Tensor) -> Tensor:
        """Returns the latent ``[B, C, h, w]`` before quantisation."""
        return self.encode(images)

    def restore(self, latent: Tensor) -> Tensor:
        """Returns ``[B, 3, H, W]``; during the warm-up without quantisation."""
        return self.decode(latent, quantize=not self.warming)

    def observe(self, latent: Tensor) -> None:
        """Adds latents ``[B, C, h, w]`` of held-out images, and the codes they choose, to the statistics."""
        super().observe(latent)
        if not self.warming:
            self.usage["val"].add(self.nearest_codes(latent)[2])

    def on_validation_epoch_end(self) -> None:
        """Logs the statistics of all held-out latents, and the use of codes."""
        super().on_validation_epoch_end()
        self._log_usage("val")

    def on_train_epoch_end(self) -> None:
        """Logs the use of codes in an epoch."""
        self._log_usage("train")

    def _log_usage(self, split: str) -> None:
        usage = self.usage[split]
        if usage.batches:
            self.log_dict({f"{split}/{name}": value for name, value in usage.figures().items()})
            log_histogram(self.loggers, f"{split}/use_of_codes", usage.relative(), max(self.global_step - 1, 0))
        usage.reset()

    def _remember(self, latent: Tensor, keep: int = 64) -> None:
        self._recent = [*self._recent[-keep + 1 :], gathered(latent.detach()).movedim(1, -1).flatten(0, 2)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the latents of the warm-up, from which a resumed run sets its codes, and the use of codes so far."""
        checkpoint["recent_latents"] = [latent.cpu() for latent in self._recent]
        checkpoint["code_usage"] = {name: usage.state_dict() for name, usage in self.usage.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes both back."""
        self._recent = list(checkpoint.get("recent_latents", []))
        for name, state in checkpoint.get("code_usage", {}).items():
            self.usage[name].load_state_dict(state)


class VQModelInterface(VQModel):
    """CompVis' name for a VQ model that is only used.

    Args:
        embed_dim: width of a code.
        options: the other arguments of :class:`VQModel`.
    """

    def __init__(self, embed_dim: int, **options: Any) -> None:
        super().__init__(embed_dim=embed_dim, **options)

    def decode(self, latent: Tensor, force_not_quantize: bool = False, *, quantize: bool = True) -> Tensor:
        """Returns the image ``[B, 3, H, W]`` of a latent, which is quantised first."""
        return super().decode(latent, quantize=quantize and not force_not_quantize)


class AutoencoderKL(AdversarialAutoencoder):
    """Autoencoder with normally distributed latents (Kingma and Welling 2014), trained against a patch discriminator.

    Args:
        ddconfig: arguments of encoder and decoder; the encoder gives means and variances (``double_z``).
        lossconfig: the loss; ``torch.nn.Identity`` for a model that only encodes and decodes.
        embed_dim: channels of the latent.
        ckpt_path: weights to start from, ``.ckpt`` or ``.safetensors``; the loss's own weights may be absent.
        ignore_keys: beginnings of names that are not taken from ``ckpt_path``.
        learn_logvar: train the likelihood's scale, which CompVis keeps at its first value.
        use_ema: keep a running average of the weights, and validate with it.
        training: the other arguments of :class:`AdversarialAutoencoder`.

    Raises:
        ValueError: ``double_z`` is false, or weights that do not fit.
    """

    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        lossconfig: Mapping[str, Any] | None,
        embed_dim: int,
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        learn_logvar: bool = False,
        use_ema: bool = False,
        **training: Any,
    ) -> None:
        super().__init__(ddconfig, **training)
        if not ddconfig.get("double_z", True):
            raise ValueError("ddconfig.double_z: got false, expected true; the encoder gives means and variances")
        self.quant_conv = nn.Conv2d(2 * ddconfig["z_channels"], 2 * embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, ddconfig["z_channels"], 1)
        self.embed_dim, self.learn_logvar = embed_dim, learn_logvar
        self.complete(lossconfig, ckpt_path, ignore_keys, use_ema)
        if hasattr(self.loss, "logvar"):
            self.loss.logvar.requires_grad_(learn_logvar)

    def encode(self, image: Tensor) -> DiagonalGaussianDistribution:
        """Returns the distribution of the latent ``[B, C, h, w]``.

        Raises:
            ValueError: the image sides are no multiple of the downsampling factor.
        """
        self.check_sides(image)
        return DiagonalGaussianDistribution(self.quant_conv(self.encoder(image)))

    def decode(self, latent: Tensor) -> Tensor:
        """Returns the image ``[B, 3, H, W]`` of a latent."""
        return self.decoder(self.post_quant_conv(latent))

    def forward(
        self, image: Tensor, sample_posterior: bool = True, noise: Tensor | None = None
    ) -> tuple[Tensor, DiagonalGaussianDistribution]:
        """Returns the reconstruction ``[B, 3, H, W]`` and the distribution of its latent.

        Args:
            image: ``[B, 3, H, W]``.
            sample_posterior: decode a sample; else the mean.
            noise: standard normal ``[B, C, h, w]`` of the sample; drawn where not given.
        """
        posterior = self.encode(image)
        return self.decode(posterior.sample(noise) if sample_posterior else posterior.mode()), posterior

    def bottleneck(self, images: Tensor, batch_idx: int) -> tuple[Tensor, DiagonalGaussianDistribution]:
        """Returns the reconstruction ``[B, 3, H, W]`` of a sample, and the distribution of its latent in float32."""
        moments = self.encode(images).parameters.float()  # exponentials and sums over all pixels need float32
        posterior = DiagonalGaussianDistribution(moments)
        noise = randn(posterior.mean.shape, self.generator(batch_idx))
        return self.decode(posterior.sample(noise)).float(), posterior

    def latent(self, images: Tensor) -> Tensor:
        """Returns the mean ``[B, C, h, w]`` of the latent's distribution."""
        return self.encode(images).mode()

    def restore(self, latent: Tensor) -> Tensor:
        """Returns the image ``[B, 3, H, W]`` of a latent."""
        return self.decode(latent)

    def generator_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of all but the loss, and of the loss the likelihood's scale where that is learnt."""
        return super().generator_parameters() + ([self.loss.logvar] if self.learn_logvar else [])


class IdentityFirstStage(nn.Module):
    """No compression: the latent is the image. Takes, and ignores, the arguments of any other first stage.

    Attributes:
        downsampling: pixels of an image to one of the latent, along each side.

    Args:
        args: ignored.
        vq_interface: give what a VQ model's quantiser gives.
        kwargs: ignored.
    """

    def __init__(self, *args: Any, vq_interface: bool = False, **kwargs: Any) -> None:  # noqa: ARG002
        super().__init__()
        self.vq_interface, self.downsampling = vq_interface, 1

    def encode(self, image: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ARG002
        """Returns the image."""
        return image

    def decode(self, latent: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ARG002
        """Returns the latent."""
        return latent

    def quantize(self, latent: Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        """Returns the latent; with ``vq_interface`` also empty loss and code numbers."""
        return (latent, None, [None, None, None]) if self.vq_interface else latent

    def forward(self, image: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ARG002
        """Returns the image."""
        return image
