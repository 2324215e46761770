"""Callbacks that stop a run before NaN or infinity reaches the weights, and warn of a discriminator that has won."""

from __future__ import annotations

import json
import logging
import os
import shutil
import statistics
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from ldm.checkpoint import write_weights
from ldm.files import atomic_path, read_json, write_json

LOG = logging.getLogger(__name__)
FACTOR = 10  # a loss is healthy up to this many times the usual one


class FiniteSteps(pl.Callback):
    """Stops a run whose loss or gradient is not finite before the optimiser's step, and saves the batch.

    ``non_finite_batch.safetensors`` holds the batch's tensors, and whatever else is in it as JSON in the metadata.

    A checkpoint of weights that have just gone astray is no use. The first batch after ``last.ckpt`` was written shows
    its loss: if that is healthy, the file is kept as ``healthy.ckpt`` (a hard link, until the next checkpoint replaces
    ``last.ckpt``), and ``healthy.json`` says its step and loss. A loss is healthy if loss and gradients are finite and
    it is at most ten times the median of the last thousand losses.

    Args:
        run: folder of the run, which holds the checkpoints as ``checkpoints/last.ckpt``.
    """

    def __init__(self, run: str | Path) -> None:
        self.run = Path(run)
        self.last, self.healthy = (self.run / "checkpoints" / name for name in ("last.ckpt", "healthy.ckpt"))
        self._batch: Mapping[str, Any] = {}
        self._losses: deque[float] = deque(maxlen=1000)
        self._loss: float | None = None  # the first of the batch; adversarial training has two
        self._step, self._seen, self._about = 0, _stamp(self.last), ""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Notes which checkpoint is there: its loss shows only if training goes on from it."""
        resumed = trainer.ckpt_path and Path(trainer.ckpt_path).resolve() == self.last.resolve()
        self._seen = None if resumed else _stamp(self.last)
        if (card := self.healthy.with_suffix(".json")).is_file():  # what was usual before the run was resumed
            self._losses.append(read_json(card, "delete it")["usual_loss"])

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any) -> None:  # noqa: ARG002
        """Remembers the batch."""
        self._batch = batch if isinstance(batch, Mapping) else {"batch": batch}
        self._loss, self._step = None, trainer.global_step

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:  # noqa: ARG002
        """Stops the run if the loss is not finite."""
        if not torch.isfinite(loss).all():
            self._end(trainer, f"loss is {loss.item()}")
        if self._loss is None:
            self._loss = loss.item()

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:  # noqa: ARG002
        """Stops the run if a gradient is not finite, except in float16, where the gradient scaler skips such a step."""
        gradients = {name: p.grad for name, p in pl_module.named_parameters() if p.grad is not None}
        if trainer.precision == "16-mixed":
            return
        if not torch.isfinite(torch.nn.utils.get_total_norm(gradients.values())):
            bad = (name for name, gradient in gradients.items() if not torch.isfinite(gradient).all())
            name = next(bad, "all parameters together")
            self._end(trainer, f"gradient of {name} is not finite")

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Keeps a checkpoint whose loss this batch has shown, if it is healthy."""
        if self._loss is None or not trainer.is_global_zero:
            return
        stamp = _stamp(self.last)
        if stamp is not None and stamp != self._seen:
            self._seen, usual = stamp, statistics.median(self._losses or [abs(self._loss)])
            self._about = f"a loss of {self._loss:.4g} (usual: {usual:.4g})"
            if abs(self._loss) <= FACTOR * usual:
                self._keep({"step": self._step, "loss": self._loss, "usual_loss": usual})
        self._losses.append(abs(self._loss))

    def _keep(self, about: Mapping[str, Any]) -> None:
        """Keeps ``last.ckpt`` as ``healthy.ckpt``."""
        try:
            with atomic_path(self.healthy) as temporary:
                try:
                    os.link(self.last.resolve(), temporary)
                except OSError:  # a file system without hard links
                    shutil.copyfile(self.last, temporary)
            write_json(self.healthy.with_suffix(".json"), about)
        except OSError as error:
            LOG.warning("%s is not kept as %s: %s", self.last, self.healthy.name, error.strerror)

    def _end(self, trainer: pl.Trainer, what: str) -> None:
        tensors = {name: value for name, value in self._batch.items() if isinstance(value, Tensor)}
        texts = {name: value for name, value in self._batch.items() if name not in tensors}
        rank = f"-{trainer.global_rank}" if trainer.global_rank else ""
        path = self.run / f"non_finite_batch{rank}.safetensors"
        batch = f"the batch is in {path}"
        try:
            write_weights(path, tensors, metadata={name: json.dumps(v, default=str) for name, v in texts.items()})
        except OSError as error:
            batch = f"the batch cannot be written to {path} ({error.strerror})"
        raise ValueError(
            f"step {trainer.global_step}: the {what}; {batch}; {self._advice()}; lower the learning rate, set "
            "lightning.trainer.gradient_clip_val or use precision=32"
        )

    def _advice(self) -> str:
        """Returns from which checkpoint the run can go on, and how that is known."""
        if not self.last.is_file():
            return "there is no checkpoint yet"
        card = self.healthy.with_suffix(".json")
        kept = self.healthy.is_file() and card.is_file()
        if kept and self.healthy.samefile(self.last):
            return f"the last checkpoint, {self.last}, is healthy: it has {self._about or 'shown so before'}"
        bad = f"whether {self.last} is healthy is not known"
        if shown := "this very loss or gradient" if _stamp(self.last) != self._seen else self._about:
            bad = f"{self.last} is not healthy: it has {shown}"
        if not kept:
            return f"{bad}; no other checkpoint was kept, so begin again"
        about = read_json(card, "delete it")
        return (
            f"{bad}; the last healthy checkpoint is {self.healthy}, of step {about['step']}, with a loss of "
            f"{about['loss']:.4g} (usual: {about['usual_loss']:.4g}); go on from it with -t --resume {self.healthy}"
        )


def _stamp(file: Path) -> tuple[int, int] | None:
    """Returns numbers that change if a file is written anew; None if there is none."""
    try:
        state = file.stat()
    except FileNotFoundError:
        return None
    return state.st_ino, state.st_mtime_ns


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
