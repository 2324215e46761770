"""CompVis' training configs: the classes that lie in its ``main.py``, and the section ``lightning``, in our terms."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl

from ldm.callbacks import ImageLogger as OurImageLogger
from ldm.data.datamodule import DataModule

LOG = logging.getLogger(__name__)


class DataModuleFromConfig(DataModule):
    """CompVis' name for :class:`ldm.data.DataModule`, with its arguments.

    Args:
        predict: must be absent: nothing reads it.
        wrap: without effect: every data set is a torch data set.
        num_workers: as there; 0 if not given.
        shuffle_test_loader: without effect, like the next two: the test and validation sets have a fixed order.
        use_worker_init_fn: see there.
        shuffle_val_dataloader: see there.
        options: arguments of :class:`ldm.data.DataModule`.

    Raises:
        ValueError: as there, or there is a set ``predict``.
    """

    def __init__(
        self,
        *,
        predict: Mapping[str, Any] | None = None,
        wrap: bool = False,  # noqa: ARG002 (CompVis' signature)
        num_workers: int | None = None,
        shuffle_test_loader: bool = False,
        use_worker_init_fn: bool = False,  # noqa: ARG002
        shuffle_val_dataloader: bool = False,
        **options: Any,
    ) -> None:
        if predict is not None:
            raise ValueError("data.params.predict: got a data set, expected none; name it test")
        if shuffle_test_loader or shuffle_val_dataloader:
            LOG.warning("the validation and test sets are read in their order; shuffling them has no effect")
        super().__init__(num_workers=num_workers or 0, **options)


class ImageLogger(OurImageLogger):
    """CompVis' name for :class:`ldm.callbacks.ImageLogger`, with its arguments.

    Args:
        batch_frequency: number of steps from one grid to the next.
        max_images: the largest number of rows in a grid.
        clamp: without effect: colours out of range are always cut off.
        increase_log_steps: write grids also at the steps 1, 2, 4, 8 ... up to ``batch_frequency``; if not given, as in
            CompVis' class, unless ``every_n_steps`` is.
        rescale: without effect: images are always in [-1, 1].
        disabled: write no grids.
        log_on_batch_idx: without effect: steps count, not batches.
        log_first_step: write a grid also after the first step.
        log_images_kwargs: without effect: a grid has images, reconstructions and samples.
        every_n_steps: the name of ``batch_frequency`` in our class.
    """

    def __init__(
        self,
        batch_frequency: int = 500,
        max_images: int = 8,
        clamp: bool = True,  # noqa: ARG002 (CompVis' signature)
        increase_log_steps: bool | None = None,
        rescale: bool = True,  # noqa: ARG002
        disabled: bool = False,
        log_on_batch_idx: bool = False,  # noqa: ARG002
        log_first_step: bool = False,
        log_images_kwargs: Mapping[str, Any] | None = None,
        every_n_steps: int | None = None,
    ) -> None:
        super().__init__(batch_frequency if every_n_steps is None else every_n_steps, max_images)
        self.increase_log_steps = every_n_steps is None if increase_log_steps is None else increase_log_steps
        self.disabled, self.log_first_step = disabled, log_first_step
        if log_images_kwargs:
            LOG.warning("log_images_kwargs has no effect; a grid has images, reconstructions and samples")

    def is_due(self, step: int) -> bool:
        """Whether a grid is written after a step."""
        early = self.increase_log_steps and step < self.every_n_steps and step & (step - 1) == 0
        return super().is_due(step) or early or (self.log_first_step and step == 1)

    def write(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes a grid, unless grids are turned off."""
        if not self.disabled:
            super().write(trainer, pl_module)
