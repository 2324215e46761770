"""Callbacks of a run: image grids, timings, the checkpoint of its last step, and what signals do."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import default_collate

from ldm.data.classes import Classes
from ldm.files import delete_left
from ldm.loggers import log_picture
from ldm.pictures import image_grid, save_png
from ldm.run import read_class_names, write_class_names
from ldm.stopping import Stopped, handled
from ldm.util import evenly

LOG = logging.getLogger(__name__)
# Parameters of glibc's mallopt, see mallopt(3), and the largest value.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, LARGEST = -1, -3, (1 << 31) - 1


# Seconds in which a signal may come twice and counts once: programs send it to a process and to its group.
ONE_AND_THE_SAME = 1.0


class ImageLogger(pl.Callback):
    """Writes a grid of ``model.log_images(batch)`` at regular steps, for images spread over the validation set.

    The grid also goes to all loggers that take pictures.

    Args:
        every_n_steps: number of steps from one grid to the next; another grid is written at the end of training.
        max_images: the largest number of rows in a grid.

    Raises:
        ValueError: an argument is below 1.
    """

    def __init__(self, every_n_steps: int = 500, max_images: int = 8) -> None:
        if every_n_steps < 1 or max_images < 1:
            raise ValueError(f"got every_n_steps={every_n_steps}, max_images={max_images}; expected at least 1 of each")
        self.every_n_steps, self.max_images = every_n_steps, max_images
        self._last = -1

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Writes a grid every ``every_n_steps`` steps."""
        if self.is_due(trainer.global_step):
            self.write(trainer, pl_module)

    def is_due(self, step: int) -> bool:
        """Whether a grid is written after a step."""
        return step % self.every_n_steps == 0

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the last grid."""
        self.write(trainer, pl_module)

    def write(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes ``images/<step>.png`` into the run's folder."""
        step, folder = trainer.global_step, trainer.log_dir  # the latter all processes must ask for
        data = getattr(trainer, "datamodule", None)
        loader = data.val_dataloader() if data else None
        if (
            step == self._last
            or not trainer.is_global_zero
            or not loader
            or not callable(log_images := getattr(pl_module, "log_images", None))
        ):
            return
        self._last = step
        images = loader.dataset
        picked = evenly(len(images), min(self.max_images, len(images)))
        batch = default_collate([images[i] for i in picked])
        training = pl_module.training
        pl_module.eval()
        with torch.no_grad():
            moved = pl_module.transfer_batch_to_device(batch, pl_module.device, 0)
            columns = {**log_images(moved), **self.more_columns(trainer, batch)}
        pl_module.train(training)
        path = Path(folder or ".") / "images" / f"{step:07d}.png"
        grid = image_grid(self.order(columns))
        save_png(grid, path)
        log_picture(trainer.loggers, "images", grid, max(step - 1, 0))
        LOG.info("wrote %s (columns: %s)", path, ", ".join(self.order(columns)))

    def more_columns(self, trainer: pl.Trainer, batch: Mapping[str, Any]) -> dict[str, Tensor]:  # noqa: ARG002
        """Returns further columns by name, for a subclass to add what the model does not know."""
        return {}

    def order(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the columns in the order in which they are shown, from left to right."""
        return dict(columns)


class ClassNames(pl.Callback):
    """For a class-conditional model, checks the numbers of classes, and writes the classes into the run's folder.

    All data sets must number their classes like the training set, or like the run's ``classes.txt`` without one.

    Args:
        run: the folder of the run.
    """

    def __init__(self, run: str | Path) -> None:
        self.run = Path(run)
        self.names: list[str] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Checks the data sets that are ready.

        Raises:
            ValueError: a picture has no class, data sets number them in different ways, or the cond stage has too few.
        """
        datasets = getattr(getattr(trainer, "datamodule", None), "datasets", {})
        train = dataset_classes(datasets.get("train"))
        self.names = read_class_names(self.run) if train is None else list(train.names)
        if getattr(pl_module, "reads", None) == "classes":
            for name, dataset in datasets.items():
                self.check(name, dataset, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Checks the data sets that are validated or tested."""
        if getattr(pl_module, "reads", None) == "classes":
            loaders = trainer.val_dataloaders
            for loader in loaders if isinstance(loaders, list) else [loaders]:
                self.check("validation", getattr(loader, "dataset", None), pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the names of the classes, in the order of their numbers."""
        if self.names and trainer.is_global_zero and getattr(pl_module, "reads", None) == "classes":
            write_class_names(self.run, self.names)

    def check(self, name: str, dataset: Any, model: Any) -> None:
        """Checks one data set; one that does not say its classes passes.

        Raises:
            ValueError: see :meth:`setup`.
        """
        classes = dataset_classes(dataset)
        if classes is None:
            return
        if classes.some_without:
            raise ValueError(f"data.params.{name} has pictures without a class, expected one for each; remove them")
        for number, each in enumerate(classes.names if self.names else ()):
            expected = self.names.index(each) if each in self.names else "none"
            if number != expected:
                raise ValueError(
                    f"data.params.{name} has number {number} for class '{each}', the training set has {expected}; give "
                    "all data sets the same class_list"
                )
        count, needed = int(model.cond_stage_model.n_classes), len(classes.names) + bool(model.p_uncond)
        if count < needed:
            null = ", of which the last is the null class of p_uncond" if model.p_uncond else ""
            raise ValueError(f"n_classes: got {count}, expected at least {needed}{null}; correct cond_stage_config")


def dataset_classes(dataset: Any) -> Classes | None:
    """Returns the classes of a data set, or of the one that it wraps; None if it does not say them."""
    while dataset is not None and not hasattr(dataset, "classes"):
        dataset = getattr(dataset, "images", None)
    found = getattr(dataset, "classes", None)
    return found if isinstance(found, Classes) else None


class LastStep(pl.Callback):
    """Writes a checkpoint of the last step, also if that step is no multiple of the checkpoint interval.

    A run that ends at ``max_steps`` is saved before Lightning counts the epoch as finished, so that a resumed run goes
    on in the middle of this epoch.

    Args:
        path: file of the checkpoint.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self._step = Path(path), -1

    def setup(self, *_: Any, **__: Any) -> None:
        """Deletes what killed processes were writing beside it; a run that has nothing left to do writes no other."""
        delete_left(self.path.parent)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Writes the checkpoint if this was step ``max_steps``."""
        if trainer.global_step == trainer.max_steps:
            self.write(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Writes the checkpoint if training ends for another reason."""
        self.write(trainer)

    def write(self, trainer: pl.Trainer) -> None:
        """Writes the checkpoint, unless it is that of this step already."""
        if self._step != trainer.global_step:
            self._step = trainer.global_step
            trainer.save_checkpoint(self.path)
            for other in trainer.checkpoint_callbacks:  # otherwise one that never wrote overwrites it after the epoch
                other._last_checkpoint_saved = str(self.path)  # type: ignore[attr-defined]


class Signals(pl.Callback):
    """Lets a run that gets a signal finish its step and write a checkpoint first.

    After ``SIGINT`` (Ctrl-C) or ``SIGTERM`` the run ends, or at once after a second one; after ``SIGUSR1`` it goes on.
    A step is finished when the optimiser has moved the weights, after all batches whose gradients it accumulates. Of
    several processes, it is enough if one gets the signal.

    Args:
        last: writes the checkpoint.

    Raises:
        Stopped: the run was told to stop, and the checkpoint is written.
    """

    def __init__(self, last: LastStep) -> None:
        self.last, self.stop, self.save, self.saved = last, 0, False, False
        self._step, self._midway, self._told = -1, False, 0.0
        self._loops: dict[str, Any] = {}
        self._handled = contextlib.ExitStack()

    def _receive(self, number: int, frame: Any) -> None:  # noqa: ARG002
        if self.stop and number != signal.SIGUSR1:
            if time.monotonic() - self._told < ONE_AND_THE_SAME:
                return
            raise Stopped(number)
        if number == signal.SIGUSR1:
            self.save, what = True, "finishing the step and saving"
        else:
            self.stop, self._told = number, time.monotonic()
            what = "finishing the step and saving; the same again stops at once"
        os.write(2, f"\n{signal.Signals(number).name}: {what}\n".encode())  # a handler may interrupt sys.stderr itself

    def on_train_start(self, *_: Any) -> None:
        """Handles the signals from now on."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        self._handled.enter_context(handled(dict.fromkeys(numbers, self._receive)))

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Ends the run if it was told to stop."""
        self._end()
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Writes the checkpoint that a signal asks for, if this batch completed a step."""
        self._loops = {}
        if trainer.global_step != self._step:  # otherwise gradients are being accumulated
            self._loops = trainer.fit_loop.state_dict()
            self._write(trainer)

    def on_validation_start(self, trainer: pl.Trainer, *_: Any) -> None:  # noqa: ARG002
        """Ends the run if it was told to stop."""
        self._end()

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Writes the checkpoint that a signal asks for, and ends the run if it was told to stop."""
        if trainer.state.fn == "fit" and self._loops:
            self._midway = True
            self._write(trainer)
            self._midway = False
            self._end()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Makes a checkpoint in the middle of a validation one of the step before: half a validation is not resumed."""
        del trainer, pl_module
        if self._midway:
            checkpoint["loops"]["fit_loop"] = self._loops

    def on_train_epoch_end(self, *_: Any) -> None:
        """Ends the run if it was told to stop."""
        self._end()

    def on_train_end(self, *_: Any) -> None:
        """Ends the run if it was told to stop, else handles the signals as before."""
        self._end()
        self._handled.close()

    def on_exception(self, *_: Any) -> None:
        """Handles the signals as before."""
        self._handled.close()

    def _write(self, trainer: pl.Trainer) -> None:
        """Writes the checkpoint if one of the processes was told to save or to stop."""
        told = [
            trainer.strategy.reduce_boolean_decision(flag, all=False) if trainer.world_size > 1 else flag
            for flag in (bool(self.stop), self.save)
        ]
        if not any(told) or self.saved:
            return
        self.last.write(trainer)
        self.save, self.saved = False, told[0]
        if not self.saved:
            LOG.info("step %d: wrote %s", trainer.global_step, self.last.path)

    def _end(self) -> None:
        if self.saved:
            raise Stopped(self.stop or signal.SIGTERM)


class KeptMemory(pl.Callback):
    """Lets glibc keep freed memory for the next step instead of returning it to the system.

    Otherwise every step asks for its large tensors again, page by page, which is 5 to 10 % of a step on a CPU. The peak
    of the memory does not change. Other C libraries are left as they are.
    """

    def on_fit_start(self, *_: Any) -> None:
        """Changes the allocator's settings for the rest of the process."""
        library: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
        if hasattr(library, "mallopt") and hasattr(library, "gnu_get_libc_version"):
            library.mallopt(M_MMAP_THRESHOLD, LARGEST)
            library.mallopt(M_TRIM_THRESHOLD, LARGEST)


class Timings(pl.Callback):
    """Logs step time, images per second, peak memory and learning rate, and says how long the rest of the run takes.

    The rest takes as long for each step as this process took from its first step on, validations and grids included.

    Args:
        every_n_steps: number of steps that each logged value is the mean of.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        self.every_n_steps = every_n_steps
        self._start, self._images = 0.0, 0
        self._begun: tuple[float, int] | None = None  # time after the first step, which is slower, and its number

    def on_train_start(self, *_: Any) -> None:
        """Forgets the run before."""
        self._begun = None

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Starts the clock, if it is not running."""
        if not self._start:
            self._start, self._images, self._first = time.perf_counter(), 0, trainer.global_step

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,  # noqa: ARG002
        batch: Any,
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Logs the values and stops the clock after ``every_n_steps`` steps."""
        if self._begun is None and trainer.global_step > self._first:
            self._begun = time.perf_counter(), trainer.global_step
        self._images += len(batch["image"]) * trainer.world_size
        steps = trainer.global_step - self._first
        if steps < self.every_n_steps:
            return
        seconds = time.perf_counter() - self._start
        self._start = 0.0
        values = {
            "step_seconds": seconds / steps,
            "images_per_second": self._images / seconds,
            "memory_gb": memory_gb(pl_module.device),
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
        }
        pl_module.log_dict({f"time/{k}" if k != "learning_rate" else k: v for k, v in values.items()})
        words = [f"{k} {v:.4g}" for k, v in values.items()]
        if left := self.time_left(trainer):
            words.append(f"{left} left")
        LOG.info("step %d: %s", trainer.global_step, ", ".join(words))

    def time_left(self, trainer: pl.Trainer) -> str:
        """Returns the rest of the run as ``H:MM:SS``; "" if it has no end, is at its end, or its speed is not known."""
        steps = trainer.estimated_stepping_batches - trainer.global_step
        callbacks: list[Any] = getattr(trainer, "callbacks", [])
        ends = [each.time_remaining() for each in callbacks if isinstance(each, pl.callbacks.Timer)]  # max_time
        if self._begun is not None and trainer.global_step > self._begun[1]:
            ends.append(steps * (time.perf_counter() - self._begun[0]) / (trainer.global_step - self._begun[1]))
        seconds = min((each for each in ends if each is not None), default=math.inf)
        return str(timedelta(seconds=round(seconds))) if steps > 0 and 0 < seconds < math.inf else ""


def memory_gb(device: torch.device) -> float:
    """Returns the peak memory of the process so far, on the accelerator or else in RAM, in 10^9 bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
