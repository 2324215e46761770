"""How Lightning writes into a run folder: checkpoints and metrics, each file whole or not at all."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from ldm.checkpoint import write_training_state
from ldm.files import atomic_path, named_in_errors

LOG = logging.getLogger(__name__)


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes checkpoints beside their old version and then in its place.

    Lightning's own way is by the system's folder for temporary files. From there to another file system a file is
    copied over its old version, which a full disk destroys.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:  # noqa: ARG002
        """Writes a checkpoint.

        Raises:
            OSError: it cannot be written, for example on a full disk; the old one is unchanged.
        """
        write_training_state(path, checkpoint)


class Metrics(CSVLogger):
    """Writes metrics to ``metrics.csv`` in the run folder."""

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The metrics that are not in the file yet."""
        if self._experiment is None:
            self._fs.makedirs(self.root_dir, exist_ok=True)
            self._experiment = _Rows(log_dir=self.log_dir)
        found: Any = self._experiment
        return found

    def finalize(self, status: str) -> None:
        """Writes the last metrics. After an error, perhaps that of a full disk, a warning says if that fails."""
        try:
            super().finalize(status)
        except OSError as error:
            if status != "failed":
                raise
            LOG.warning("the last metrics are not in %s: %s", error.filename, error.strerror)


class _Rows(ExperimentWriter):
    def save(self) -> None:
        """Appends the recorded metrics to the file, or writes it anew if there is a new metric.

        Raises:
            OSError: the file cannot be written, for example on a full disk; it holds what it held before.
        """
        if not self.metrics:
            return
        file = Path(self.metrics_file_path)
        new = set().union(*self.metrics) - set(self.metrics_keys)
        if new or not file.is_file():
            keys = sorted({*self.metrics_keys, *new})
            rows: list[dict[str, Any]] = []
            if file.is_file():
                with file.open(newline="", encoding="utf-8") as stream:
                    rows = list(csv.DictReader(stream))
            with atomic_path(file) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
                writer = csv.DictWriter(stream, keys)
                writer.writeheader()
                writer.writerows([*rows, *self.metrics])
            self.metrics_keys = keys
        else:
            self._append(file)
        self.metrics = []

    def _append(self, file: Path) -> None:
        size = file.stat().st_size
        try:
            with named_in_errors(file), file.open("a", newline="", encoding="utf-8") as stream:
                csv.DictWriter(stream, self.metrics_keys).writerows(self.metrics)
        except OSError:
            with file.open("r+b") as stream:
                stream.truncate(size)  # half a line would be read as another number
            raise
