"""What a training takes, measured over its first steps before anything is kept: ``main.py --dry-run``."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ldm.config import RunConfig
from ldm.trainer_options import errors_in_words

COUNTED, WARM_UP, TIMED = 1, 1, 3  # batches: for operations and memory, not counted, and timed


@dataclass(frozen=True)
class Cost:
    """What a training takes.

    Attributes:
        parameters: number of weights, with frozen ones and averages.
        trained: number of those that are trained.
        weights: bytes of all of them and of other buffers.
        gradients: bytes of the gradients.
        optimiser: bytes of the states of the optimisers.
        activations: most bytes that forward passes keep for a backward pass.
        peak: most bytes of this process, or on a GPU of the allocated memory.
        tflop: operations of a step in TFLOP: products, convolutions and attention, forward and backward.
        seconds: of a step, with its loader.
        images: of a step, on all devices.
        steps: of the whole training; None if the config does not limit them.
    """

    parameters: int
    trained: int
    weights: int
    gradients: int
    optimiser: int
    activations: int
    peak: int
    tflop: float
    seconds: float
    images: int
    steps: int | None

    def lines(self) -> Iterator[str]:
        """Yields the cost in words."""
        together = self.weights + self.gradients + self.optimiser + self.activations
        yield f"parameters: {self.parameters:,}, of which {self.trained:,} are trained"
        yield (
            f"memory: weights {_size(self.weights)}, gradients {_size(self.gradients)}, optimiser "
            f"{_size(self.optimiser)}, activations {_size(self.activations)}; together {_size(together)}; the process "
            f"took {_size(self.peak)} at most"
        )
        yield (
            f"a step: {self.tflop:.3g} TFLOP, {self.seconds:.3g} s, {self.images / self.seconds:.3g} images a second "
            f"(median of {TIMED} steps)"
        )
        if self.steps is None:
            yield "time: the config limits no steps; give lightning.trainer.max_steps"
        else:
            hours = self.steps * self.seconds / 3600
            took = f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
            yield f"time: {self.steps:,} steps take {took}, without validations, grids and checkpoints"


class Measure(pl.Callback):
    """Measures the first batches of a training and ends it."""

    def __init__(self) -> None:
        self.batches, self.images, self.flop = 0, 0, 0
        self.kept: dict[int, int] = {}
        self.most = self.optimiser = 0
        self.ends: list[tuple[float, int]] = []  # of batches: the time, and the number of steps so far
        self._watching = ExitStack()

    def on_train_batch_start(self, _: pl.Trainer, pl_module: pl.LightningModule, *__: Any) -> None:
        """Begins to count operations and kept tensors in the first batches."""
        if self.batches < COUNTED:
            own = {each.untyped_storage().data_ptr() for each in (*pl_module.parameters(), *pl_module.buffers())}

            def keep(tensor: Tensor) -> Tensor:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in own:
                    self.kept[storage.data_ptr()] = storage.nbytes()
                return tensor

            self._watching.enter_context(torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor))
            self._counter = self._watching.enter_context(FlopCounterMode(display=False))

    def on_before_backward(self, *_: Any) -> None:
        """Takes the tensors that are kept for this backward pass."""
        self.most, self.kept = max(self.most, sum(self.kept.values())), {}

    def on_train_batch_end(self, trainer: pl.Trainer, _: Any, __: Any, batch: Any, *___: Any) -> None:
        """Takes the figures of a batch, and ends the training after the last one."""
        if self.batches < COUNTED:
            self._watching.close()
            self.flop += self._counter.get_total_flops()
            self.images = len(batch["image"])
        self.batches += 1
        self.ends.append((time.perf_counter(), trainer.global_step))
        states = [state for optimiser in trainer.optimizers for state in optimiser.state.values()]
        self.optimiser = sum(_bytes(value for value in state.values() if isinstance(value, Tensor)) for state in states)
        steps = trainer.global_step - self.ends[COUNTED + WARM_UP - 1][1] if self.batches > COUNTED + WARM_UP else 0
        trainer.should_stop = steps >= TIMED
        if trainer.should_stop:
            trainer.limit_train_batches = 0


def dry_run(config: RunConfig, model: Any, data: Any, trainer_of: Callable[[RunConfig, Path], pl.Trainer]) -> Cost:
    """Takes a few steps in a folder that is deleted, and returns what the training takes.

    Databases and tables that the training needs are built first if they are missing, and stay.

    Args:
        config: the config of the training.
        model: the model, whose weights change.
        data: the data module.
        trainer_of: makes the trainer of a config that writes into a folder.
    """
    limits: dict[str, Any] = {"limit_val_batches": 0, "enable_progress_bar": False, "max_steps": -1, "max_epochs": -1}
    few = replace(config, trainer={**config.trainer, **limits}, callbacks={}, logger=[])
    with tempfile.TemporaryDirectory() as folder:
        trainer: Any = trainer_of(few, Path(folder))
        measure = Measure()
        trainer.callbacks = [measure]
        with errors_in_words():
            trainer.fit(model, datamodule=data)
    return _cost(config, model, trainer, measure)


def _cost(config: RunConfig, model: Any, trainer: pl.Trainer, measure: Measure) -> Cost:
    trained = [each for each in model.parameters() if each.requires_grad]
    timed = measure.ends[COUNTED + WARM_UP - 1 :]
    of_batch = statistics.median(b[0] - a[0] for a, b in zip(timed, timed[1:], strict=False))
    batches = (len(timed) - 1) / (timed[-1][1] - timed[0][1])  # of a step
    steps = config.trainer.get("max_steps", -1)
    return Cost(
        parameters=sum(each.numel() for each in model.parameters()),
        trained=sum(each.numel() for each in trained),
        weights=_bytes([*model.parameters(), *model.buffers()]),
        gradients=_bytes(trained),
        optimiser=measure.optimiser,
        activations=measure.most,
        peak=_peak(),
        tflop=measure.flop / COUNTED * batches / 1e12,
        seconds=of_batch * batches,
        images=round(measure.images * batches) * trainer.world_size,
        steps=None if steps < 0 else steps,
    )


def _bytes(tensors: Any) -> int:
    return sum(each.numel() * each.element_size() for each in tensors)


def _peak() -> int:
    """Returns the most memory of the GPU that was allocated, or the most that this process ever took (Linux, macOS)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource
    import sys

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def _size(number: int) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
