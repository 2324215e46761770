"""What watches a run: it ends before numbers that are none reach its weights, and says what a person would look for."""

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
    """Ends a run whose loss or gradient is not finite, before the step is taken, and keeps the batch for inspection.

    The batch is ``non_finite_batch.safetensors``: its tensors as such, all else as text in the metadata.

    Args:
        run: folder of the run; the last good checkpoint is ``checkpoints/last.ckpt`` in it.
    """

    def __init__(self, run: str | Path) -> None:
        self.run = Path(run)
        self._batch: Mapping[str, Any] = {}

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any) -> None:  # noqa: ARG002
        """Remembers the batch."""
        self._batch = batch if isinstance(batch, Mapping) else {"batch": batch}

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:  # noqa: ARG002
        """Ends the run where the loss is not finite."""
        if not torch.isfinite(loss).all():
            self._end(trainer, f"loss is {loss.item()}")

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:  # noqa: ARG002
        """Ends the run where a gradient is not finite, unless a gradient scaler is about to leave out the step."""
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
    """Says once that a discriminator has won: with saturated logits, the generator learns nothing from it any more.

    A hinge or vanilla loss of a discriminator that cannot tell is 1 or 0.69; under 0.05 it tells nearly every patch.

    Args:
        every_n_steps: distance between looks.
        patience: looks in a row at which the loss is under the threshold.
        threshold: of the discriminator's loss, before its factor.
    """

    def __init__(self, every_n_steps: int = 50, patience: int = 20, threshold: float = 0.05) -> None:
        self.every_n_steps, self.patience, self.threshold = every_n_steps, patience, threshold
        self._won, self._looked = 0, -1

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Looks, where it is time."""
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
                "step %d: the discriminator has won: its loss was under %.3g in %d looks in a row, its logits are %.3g "
                "for images and %.3g for reconstructions; raise lr_g_factor, or go back and start it later",
                *(step, self.threshold * factor, self.patience),
                *(float(logged[f"train/logits_{kind}"]) for kind in ("real", "fake")),
            )


class LatentStatistics(pl.Callback):
    """Stores what a first stage's validation measures of its latents, so that nobody types a scale factor.

    Args:
        path: JSON file: mean and standard deviation of all latents, the ``scale_factor`` that makes the latter 1
            (Rombach et al. 2022, appendix G), and the step.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Writes the file, in training."""
        logged = trainer.callback_metrics
        if trainer.state.fn != "fit" or "val/latent_std" not in logged or not trainer.is_global_zero:
            return
        mean, std = float(logged["val/latent_mean"]), float(logged["val/latent_std"])
        if not 0 < std < float("inf"):
            return
        content = {"latent_mean": mean, "latent_std": std, "scale_factor": 1 / std}
        write_json(self.path, content | {"step": trainer.global_step})
