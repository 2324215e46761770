"""Callbacks that stop a run before NaN or infinity reaches the weights, and warn of a discriminator that has won."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from ldm.checkpoint import write_weights
from ldm.files import write_json

LOG = logging.getLogger(__name__)


class FiniteSteps(pl.Callback):
    """Stops a run whose loss or gradient is not finite before the optimiser's step, and saves the batch.

    ``non_finite_batch.safetensors`` holds the batch's tensors, and whatever else is in it as JSON in the metadata.

    Args:
        run: folder of the run, which holds the last good checkpoint as ``checkpoints/last.ckpt``.
    """

    def __init__(self, run: str | Path) -> None:
        self.run = Path(run)
        self._batch: Mapping[str, Any] = {}

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any) -> None:  # noqa: ARG002
        """Remembers the batch."""
        self._batch = batch if isinstance(batch, Mapping) else {"batch": batch}

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:  # noqa: ARG002
        """Stops the run if the loss is not finite."""
        if not torch.isfinite(loss).all():
            self._end(trainer, f"loss is {loss.item()}")

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:  # noqa: ARG002
        """Stops the run if a gradient is not finite, except in float16, where the gradient scaler skips such a step."""
        gradients = {name: p.grad for name, p in pl_module.named_parameters() if p.grad is not None}
        if trainer.precision == "16-mixed":
            return
        if not torch.isfinite(torch.nn.utils.get_total_norm(gradients.values())):
            bad = (name for name, gradient in gradients.items() if not torch.isfinite(gradient).all())
            name = next(bad, "all parameters together")
            self._end(trainer, f"gradient of {name} is not finite")

    def _end(self, trainer: pl.Trainer, what: str) -> None:
        tensors = {name: value for name, value in self._batch.items() if isinstance(value, Tensor)}
        texts = {name: value for name, value in self._batch.items() if name not in tensors}
        rank = f"-{trainer.global_rank}" if trainer.global_rank else ""
        path, last = self.run / f"non_finite_batch{rank}.safetensors", self.run / "checkpoints" / "last.ckpt"
        write_weights(path, tensors, metadata={name: json.dumps(value, default=str) for name, value in texts.items()})
        kept = f"the last good checkpoint is {last}" if last.is_file() else "there is no checkpoint yet"
        raise ValueError(
            f"step {trainer.global_step}: the {what}; the batch is in {path}, {kept}; lower the learning rate, "
            "set lightning.trainer.gradient_clip_val or use precision=32"
        )


class DiscriminatorWatch(pl.Callback):
    """Warns once that the discriminator has won: its logits are saturated, and the generator learns nothing from it.

    A discriminator that only guesses has a hinge loss of 1, or a vanilla loss of 0.69. One whose loss is below 0.05
    recognises nearly every patch.

    Args:
        every_n_steps: number of steps from one check to the next.
        patience: number of consecutive checks with a loss below the threshold that lead to the warning.
        threshold: for the discriminator's loss, before it is multiplied by its factor.
    """

    def __init__(self, every_n_steps: int = 50, patience: int = 20, threshold: float = 0.05) -> None:
        self.every_n_steps, self.patience, self.threshold = every_n_steps, patience, threshold
        self._won, self._looked = 0, -1

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Checks the logged loss every ``every_n_steps`` steps."""
        step = trainer.global_step
        if step % self.every_n_steps or step == self._looked or self._won >= self.patience:
            return
        self._looked, logged = step, trainer.callback_metrics
        if "train/disc_loss" not in logged:
            return
        factor = getattr(getattr(pl_module, "loss", None), "disc_factor", 1.0)
        self._won = self._won + 1 if logged["train/disc_loss"] < self.threshold * factor else 0
        if self._won >= self.patience:
            LOG.warning(
                "step %d: the discriminator has won: its loss was below %.3g in %d checks in a row, its logits are "
                "%.3g for images and %.3g for reconstructions; raise lr_g_factor, or start the discriminator later",
                *(step, self.threshold * factor, self.patience),
                *(float(logged[f"train/logits_{kind}"]) for kind in ("real", "fake")),
            )


class LatentStatistics(pl.Callback):
    """Saves the statistics of a first stage's latents from each validation, so that nobody has to type a scale factor.

    Args:
        path: JSON file with the mean and the standard deviation of all latents, the ``scale_factor`` that makes the
            standard deviation 1 (Rombach et al. 2022, appendix G), and the step.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Writes the file if the validation is part of training."""
        logged = trainer.callback_metrics
        if trainer.state.fn != "fit" or "val/latent_std" not in logged or not trainer.is_global_zero:
            return
        mean, std = float(logged["val/latent_mean"]), float(logged["val/latent_std"])
        if not 0 < std < float("inf"):
            return
        content = {"latent_mean": mean, "latent_std": std, "scale_factor": 1 / std}
        write_json(self.path, content | {"step": trainer.global_step})
