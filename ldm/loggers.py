"""Where a run's figures and pictures go: always a CSV file, and TensorBoard or Weights & Biases where a config says so.

Steps are counted from 0, as Lightning counts them for losses: what is seen after the first step belongs to step 0.
"""

from __future__ import annotations

import importlib.util
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from torch import Tensor

from ldm.saving import Metrics
from ldm.util import instantiate_from_config, to_install

WHERE = "lightning.logger"
OWN = "ldm.loggers."  # loggers of this module are told the run folder; others are built as their config says


class TensorBoard(TensorBoardLogger):
    """Event files of TensorBoard in the folder ``tensorboard`` of a run.

    Args:
        run: the folder of the run.
        prefix: text in front of the name of each figure, with a hyphen.
        flush_secs: seconds after which figures are written to the file at the latest.
        max_queue: number of figures after which they are written.

    Raises:
        ValueError: tensorboard is not installed.
    """

    def __init__(self, run: str | Path, prefix: str = "", flush_secs: int = 30, max_queue: int = 100) -> None:
        _check_installed("tensorboard")
        super().__init__(
            run, "", "tensorboard", default_hp_metric=False, prefix=prefix, flush_secs=flush_secs, max_queue=max_queue
        )

    def forget_from(self, step: int) -> None:
        """Makes TensorBoard leave out what an earlier process wrote of this step and later ones."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        start = SessionLog(status=SessionLog.START)
        self.experiment.file_writer.add_event(Event(wall_time=time.time(), step=step, session_log=start))


class WeightsAndBiases(WandbLogger):
    """A run of Weights & Biases, with its files in the folder ``wandb`` of the run; continued if it has one there.

    Args:
        run: the folder of the run.
        project: the project there; if not given, that of ``WANDB_PROJECT``, or ``lightning_logs``.
        name: the name there; if not given, that of the folder.
        entity: the user or team there.
        group: see Weights & Biases, like the next two.
        tags: see there.
        notes: see there.
        id: the id there; if not given, that of the earlier part of the run, or a new one.
        offline: only write files, which ``wandb sync`` uploads later, as the environment's ``WANDB_MODE=offline`` does.
        log_model: upload the checkpoints.
        prefix: text in front of the name of each figure, with a hyphen.

    Raises:
        ValueError: wandb is not installed, or both ``offline`` and ``log_model`` are given.
    """

    def __init__(
        self,
        run: str | Path,
        project: str | None = None,
        name: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[str] | None = None,
        notes: str | None = None,
        id: str | None = None,  # noqa: A002 (the name that Weights & Biases has for it)
        offline: bool = False,
        log_model: bool = False,
        prefix: str = "",
    ) -> None:
        _check_installed("wandb")
        if offline and log_model:
            raise ValueError(f"{WHERE}: got offline and log_model, expected one of them; leave out log_model")
        super().__init__(
            name or Path(run).resolve().name,
            run,
            project=project,
            id=id or earlier_id(run),
            offline=offline,
            log_model=log_model,
            prefix=prefix,
            entity=entity,
            group=group,
            tags=tags,
            notes=notes,
        )
        self._wandb_init.pop("anonymous")  # Lightning gives it; wandb warns that it has no effect any more

    @property
    def experiment(self) -> Any:
        """The run of Weights & Biases, which is begun at its first use.

        Raises:
            ValueError: it cannot be begun, for example because nobody is logged in.
        """
        import wandb

        try:
            return super().experiment
        except wandb.errors.Error as error:
            text = " ".join(str(error).split()).rstrip(".")
            raise ValueError(f"{WHERE}: wandb: {text}; run 'wandb login', or give params: {{offline: true}}") from error

    def finalize(self, status: str) -> None:
        """Ends the run there, so that the next one of this process is another."""
        super().finalize(status)
        if self._experiment is not None:
            self._experiment.finish(exit_code=int(status != "success"))
            self._experiment = None


class ForgetLaterSteps(pl.Callback):
    """Makes TensorBoard leave out the steps after the checkpoint from which a run goes on: they are done again."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Marks the step in each TensorBoard logger."""
        for logger in trainer.loggers if trainer.global_step and trainer.is_global_zero else ():
            if isinstance(logger, TensorBoard):
                logger.forget_from(trainer.global_step)


def build_loggers(configs: Sequence[Mapping[str, Any]], run: Path) -> list[Logger]:
    """Returns the logger of ``metrics.csv`` and those that a config names, which all write into a run folder.

    The metrics of the earlier part of a resumed run are renamed to ``metrics-<n>.csv``; Lightning would delete them.

    Args:
        configs: ``target`` and ``params`` of each further logger, see :func:`ldm.convert.lightning.our_lightning`.
        run: the folder of the run.

    Raises:
        ValueError: a target is not trusted or no logger, or a package is not installed.
    """
    others = [_build(config, run) for config in configs]
    metrics = run / "metrics.csv"
    if metrics.is_file():
        metrics.rename(run / f"metrics-{len(list(run.glob('metrics-*.csv')))}.csv")
    # Lightning numbers its log folders; a run is one folder here.
    return [Metrics(run, name="", version="", flush_logs_every_n_steps=50), *others]


def _build(config: Mapping[str, Any], run: Path) -> Logger:
    own = {"run": run} if str(config.get("target")).startswith(OWN) else {}
    try:
        logger = instantiate_from_config(config, **own)
    except ModuleNotFoundError as error:
        raise ValueError(f"{WHERE}: {config['target']} needs {error.name or error}; install it") from error
    if not isinstance(logger, Logger):
        raise ValueError(f"{WHERE}: got {config['target']}, expected a logger of Lightning; give tensorboard or wandb")
    return logger


def _check_installed(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"{WHERE}: {package} is not installed: {to_install('loggers')}")


def earlier_id(run: str | Path) -> str | None:
    """Returns the id in the name of the newest folder that Weights & Biases made in a run folder; None without one."""
    named = [re.fullmatch(r"(?:offline-)?run-(\d+_\d+)-(.+)", path.name) for path in Path(run).glob("wandb/*run-*")]
    return max(((found[1], found[2]) for found in named if found), default=(None, None))[1]


def log_picture(loggers: Iterable[Any], name: str, picture: Tensor, step: int) -> None:
    """Gives a picture ``[C, H, W] uint8`` to all loggers that take pictures."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, picture, step)
        elif callable(log_image := getattr(logger, "log_image", None)):
            log_image(name, [picture.permute(1, 2, 0).numpy()], step)


def log_histogram(loggers: Iterable[Any], name: str, values: Tensor, step: int) -> None:
    """Gives the distribution of values ``[n]`` to TensorBoard and Weights & Biases."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_histogram(name, values.cpu(), step)
        elif isinstance(logger, WandbLogger):
            import wandb

            shares: Any = wandb.Histogram(values.tolist())
            logger.log_metrics({name: shares}, step)
