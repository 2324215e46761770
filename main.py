"""Trains, validates or tests the model that YAML configs describe.

Example: ``python main.py --base configs/rdm.yaml -t model.params.k=8 lightning.trainer.max_steps=200``
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import logging
import os
import pdb
import re
import shlex
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.command_line import HelpFormatter, PlainParser, add_trust_option, command_line, in_words, seed_number
from ldm.config import RunConfig, read_run_config, write_config
from ldm.curves import draw_run
from ldm.files import FULL
from ldm.locks import LOCK, locked
from ldm.processes import ended_together, is_first, leave_words_to_first, run_of_first
from ldm.stopping import Stopped, handled, stop_at_once
from ldm.trainer_options import check_trainer_options, errors_in_words
from ldm.util import check_params, instantiate_from_config, nearest

if TYPE_CHECKING:
    import pytorch_lightning as pl

LOG = logging.getLogger("main")
# Lightning's warnings that do not apply here: metrics are renamed before Lightning deletes them, a first stage is
# meant to stay in evaluation mode, one process loads small pictures fast enough, and a checkpoint is meant to hold the
# weights after the step. The others concern Lightning and torch alone.
UNTRUE = (
    "Experiment logs directory",
    "Found .* in eval mode",
    ".*many workers",
    ".*isinstance.treespec",
    "The dirpath has",
    "Checkpoint directory .* not empty",
    "Using ModelCheckpoint with manual optimization",
    "Using .DistributedSampler. with",  # the loaders of validation give each picture once
    "It is recommended to use .self.log",  # what is logged without sync_dist is equal on all processes
    "Detected call of .lr_scheduler.step",  # a discriminator that starts later has the schedule of all steps
)


def yes_or_no(text: str) -> bool:
    """Returns the truth value that a word of the command line stands for."""
    if text.lower() in ("yes", "true", "t", "y", "1"):
        return True
    if text.lower() in ("no", "false", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"expected yes or no, got '{text}'")


def gpu_numbers(text: str) -> str:
    """Returns the numbers of GPUs as they are written, once they are checked."""
    if text and not re.fullmatch(r"\d+(,\d+)*,?", text):
        raise argparse.ArgumentTypeError(f"expected numbers such as '0,' or '0,1', got '{text}'")
    return text


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Returns the parsed command line; ``overrides`` holds all words of the form ``a.b=c``."""
    flag: dict[str, Any] = {
        "type": yes_or_no,
        "nargs": "?",
        "const": True,
        "default": False,
        "metavar": "BOOL",
    }
    p = PlainParser(description=__doc__.splitlines()[0], formatter_class=HelpFormatter)
    p.add_argument(
        "-b", "--base", nargs="*", default=[], metavar="YAML", help="configs, merged from left to right; later ones win"
    )
    p.add_argument("-t", "--train", **flag, help="train the model; without this option, it is only validated")
    p.add_argument("--dry-run", **flag, help="take a few steps, say what the training takes, and keep nothing of it")
    p.add_argument("--no-test", **flag, help="skip the test set")
    p.add_argument(
        "-r",
        "--resume",
        default="",
        metavar="RUN",
        help="continue the run in this folder, or from this checkpoint, with the run's own config",
    )
    p.add_argument(
        "-d", "--debug", **flag, help="after an error, show its traceback, and on a terminal open Python's debugger"
    )
    p.add_argument("-n", "--name", default="", help="name of the run; if not given, that of the first config")
    p.add_argument("-f", "--postfix", default="", help="text that is appended to the name")
    p.add_argument("-p", "--project", default="", help="folder of the run, in place of <logdir>/<time>_<name>")
    p.add_argument("-l", "--logdir", default="logs", help="folder in which run folders are created")
    p.add_argument(
        "-s",
        "--seed",
        type=seed_number,
        default=23,
        help="seed of the initial weights; see data.params.seed for the data order, model.params.seed for the noise",
    )
    p.add_argument(
        "--scale_lr",
        **flag,
        help="multiply the learning rate by the numbers of devices, of pictures in a batch, and of accumulated batches",
    )
    p.add_argument(
        "--gpus",
        type=gpu_numbers,
        default="",
        help="numbers of the GPUs to use, such as '0' or '0,1'; if not given, all that are there, or the CPU",
    )
    add_trust_option(p)
    p.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the configs")
    words = sys.argv[1:] if arguments is None else arguments
    # Settings may stand anywhere, so they are removed before an option with an optional value can take one of them.
    settings = [word for word in words if re.fullmatch(r"[A-Za-z_][\w.]*=.*", word, re.DOTALL)]
    options, rest = p.parse_known_args([word for word in words if word not in settings])
    if rest := [*rest, *options.overrides]:
        p.error(f"unknown argument '{rest[0]}'{_of_trainer(rest[0]) or nearest(rest[0], p._option_string_actions)}")
    options.overrides = settings
    return options


def _of_trainer(word: str) -> str:
    """Returns the setting that takes the place of an option which CompVis' main.py passes to Lightning's Trainer."""
    import pytorch_lightning as pl

    name = word.lstrip("-").partition("=")[0].replace("-", "_")
    known = name in inspect.signature(pl.Trainer).parameters
    return f"; give lightning.trainer.{name}=VALUE, without dashes" if known and word.startswith("--") else ""


def find_run(resume: str) -> tuple[Path, Path]:
    """Returns the run folder and the checkpoint that ``--resume`` names.

    Raises:
        FileNotFoundError: there is no such folder, file or checkpoint.
        ValueError: the file lies in no run folder.
    """
    path = Path(resume)
    if path.is_file():
        if path.parent.name != "checkpoints" or path.suffix != ".ckpt":
            raise ValueError(f"got {resume}, expected a run folder or a .ckpt file in its checkpoints/")
        return path.parent.parent, path
    checkpoint = path / "checkpoints" / "last.ckpt"
    if not checkpoint.is_file():
        raise FileNotFoundError(
            f"nothing to resume at {resume}: expected a checkpoint or a folder with checkpoints/last.ckpt"
        )
    return path, checkpoint


def build_trainer(config: RunConfig, run: Path, gpus: str, train: bool) -> pl.Trainer:
    """Returns the Lightning trainer that a config describes, which writes into the folder ``run``.

    Raises:
        ValueError: Lightning knows no such setting, or there is no such GPU.
    """
    import pytorch_lightning as pl
    import torch
    from lightning_fabric.utilities.exceptions import MisconfigurationException
    from pytorch_lightning.callbacks import ModelCheckpoint, TQDMProgressBar
    from pytorch_lightning.strategies import DDPStrategy
    from torch.nn.parallel import DistributedDataParallel

    from ldm.callbacks import ClassNames, KeptMemory, LastStep, Signals, Timings
    from ldm.guards import DiscriminatorWatch, FiniteSteps, LatentStatistics
    from ldm.loggers import ForgetLaterSteps, build_loggers
    from ldm.modules.shared_norm import SharedNorms
    from ldm.precision import AUTO, fastest_precision
    from ldm.saving import AtomicCheckpoints

    for message in UNTRUE:
        warnings.filterwarnings("ignore", message)
    defaults = {"log_every_n_steps": 10, "num_sanity_val_steps": 0, "enable_model_summary": False}
    options: dict[str, Any] = {**defaults, **config.trainer}
    if taken := sorted({"callbacks", "logger"} & set(options)):
        raise ValueError(f"lightning.trainer has no place for '{taken[0]}'; give lightning.{taken[0]}")
    check_trainer_options(options)
    if gpus:
        options |= {"accelerator": "gpu", "devices": [int(g) for g in gpus.strip(",").split(",")]}
    if options.get("precision") == AUTO:
        on_gpu = options.get("accelerator", "auto") in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        options["precision"] = fastest_precision(on_gpu)
        LOG.info("precision %s", options["precision"])
    best: dict[str, Any] = {"monitor": config.monitor, "mode": "min", "save_top_k": 1}
    keep: dict[str, Any] = {
        "every_n_train_steps": 500,
        "save_last": True,
        "save_top_k": 0,
        "enable_version_counter": False,
        **config.checkpoint,
    }
    check_params("lightning.checkpoint", ModelCheckpoint, keep)
    best |= {name: keep.pop(name) for name in ("monitor", "mode") if name in keep}
    callbacks = [ModelCheckpoint(run / "checkpoints", filename="best", **keep), KeptMemory(), Timings()]
    if best["monitor"]:  # saved after a validation; the callback above would see the value of the validation before
        after: dict[str, Any] = {"every_n_epochs": 1, "save_on_train_epoch_end": False, "enable_version_counter": False}
        callbacks.append(ModelCheckpoint(run / "checkpoints", filename="best", **best, **after))
    callbacks += [
        keep_config(run, config.content),
        ClassNames(run),
        FiniteSteps(run),
        DiscriminatorWatch(),
        LatentStatistics(run / "latents.json"),
        ForgetLaterSteps(),
    ]
    last = LastStep(run / "checkpoints" / "last.ckpt")
    callbacks += [last, Signals(last)] if keep["save_last"] else [Signals(last)]
    if options.get("enable_progress_bar", True):
        callbacks.append(TQDMProgressBar(refresh_rate=10))
    callbacks += [instantiate_from_config(callback) for callback in config.callbacks.values()]
    check_params("lightning.trainer", pl.Trainer, options)
    logger = build_loggers(config.logger, run) if train else False
    shared = options.pop("sync_batchnorm", True)
    plugins = options.pop("plugins", None) or []
    plugins = [*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpoints()]
    plugins += [SharedNorms()] if shared else []
    try:
        trainer = pl.Trainer(**options, callbacks=callbacks, logger=logger, plugins=plugins)
    except (TypeError, MisconfigurationException) as error:
        given = f"--gpus {gpus}" if gpus else "lightning.trainer"
        raise ValueError(f"{given}: {str(error).rstrip('!.')}; correct it, or leave it out") from error
    if isinstance(trainer.strategy, DDPStrategy) and shared:  # then all processes have equal buffers, such as averages
        names = inspect.signature(DistributedDataParallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
        trainer.strategy._ddp_kwargs.setdefault(name, False)
    return trainer


def new_run(options: argparse.Namespace, name: str) -> Path:
    """Returns the folder of a new run; in training, a folder under ``--logdir`` is new and is created at once.

    Raises:
        ValueError: ``--project`` names a folder that holds checkpoints of another run. One without checkpoints is that
            of a run which ended before the first.
    """
    if (run := run_of_first()) is not None:
        return run
    if options.project:
        run = Path(options.project)
        if options.train and is_first() and any((run / "checkpoints").glob("*.ckpt")):
            raise ValueError(f"{run} already holds a run; go on with --resume {run}, or name another folder")
        return run
    stem = f"{time.strftime('%Y-%m-%dT%H-%M-%S')}_{name}{options.postfix}"
    run, number = Path(options.logdir) / stem, 1
    while options.train and os.environ.get("LOCAL_RANK", "0") == "0":  # other processes leave it to the first
        try:
            run.mkdir(parents=True)
            break
        except FileExistsError:
            number += 1
            run = Path(options.logdir) / f"{stem}-{number}"
    return run


def keep_config(run: Path, config: dict[str, Any]) -> pl.Callback:
    """Returns a callback that writes the config when training starts: one that fails earlier keeps the old config."""
    from pytorch_lightning.callbacks import LambdaCallback

    def write(trainer: pl.Trainer, _: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            write_config(run / "config.yaml", config)

    return LambdaCallback(on_train_start=write)


def set_learning_rate(model: Any, config: RunConfig, scale: bool, trainer: pl.Trainer) -> None:
    """Sets and logs the learning rate: the config's or else the model's own, multiplied where ``scale`` asks for it."""
    rate = model.learning_rate if config.learning_rate is None else config.learning_rate
    if scale:
        rate = rate * trainer.world_size * config.batch_size * trainer.accumulate_grad_batches
    model.learning_rate = rate
    LOG.info(
        "learning rate %.3g%s",
        rate,
        " (scaled by devices x batch x accumulation)" if scale else " (absolute)",
    )


def train(options: argparse.Namespace) -> None:
    """Trains, validates or tests as the command line says."""
    run, checkpoint = find_run(options.resume) if options.resume else (None, None)
    paths = options.base or ([str(run / "config.yaml")] if run else [])
    if not paths:
        raise ValueError("nothing to do: give a config with --base, or a run to go on from with --resume")
    config = read_run_config(paths, options.overrides)
    from ldm.checkpoint import check_weights, read_weights

    weights = read_weights(checkpoint) if checkpoint else {}  # refuses a truncated file, or one that would run code
    import pytorch_lightning as pl

    pl.seed_everything(options.seed, workers=True)
    model = instantiate_from_config(config.model)
    data = instantiate_from_config(config.data)
    check_weights(model, weights, source=f"checkpoint {checkpoint}", allow=("*",))  # shapes; names are for Lightning
    del weights
    if options.dry_run:
        from ldm.dry_run import dry_run

        cost = dry_run(config, model, data, lambda few, folder: build_trainer(few, folder, options.gpus, True))
        print(*cost.lines(), sep="\n")
        return
    made = run is None
    run = run or new_run(options, options.name or Path(paths[0]).stem)
    try:
        with alone(run) if options.train else contextlib.nullcontext():
            fit(options, config, run, checkpoint, model, data)
    finally:
        if made and is_first() and run.is_dir() and not any(run.iterdir()):
            run.rmdir()


@contextlib.contextmanager
def alone(run: Path) -> Iterator[None]:
    """Keeps other runs out of a run's folder. The first process of a run does so for all of them.

    Raises:
        ValueError: another run is training there.
    """
    if not is_first():
        yield
        return
    with locked(run / LOCK, f"training in {run}", wait=False):
        yield


def fit(
    options: argparse.Namespace, config: RunConfig, run: Path, checkpoint: Path | None, model: Any, data: Any
) -> None:
    """Trains or validates the model, and tests it unless the options say otherwise."""
    trainer = build_trainer(config, run, options.gpus, options.train)
    set_learning_rate(model, config, options.scale_lr, trainer)
    weights = None if options.train else checkpoint
    if options.train:
        LOG.info("run folder %s", run)
        try:
            with errors_in_words(), ended_together(trainer, run):
                trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        except Stopped as stop:
            how = "there is no checkpoint yet; the same command begins again, and goes on with unfinished tables"
            if (run / "checkpoints" / "last.ckpt").is_file():
                how = f"go on from its last checkpoint with -t --resume {shlex.quote(str(run))}"
            raise Stopped(stop.number, f"stopped at step {trainer.global_step}; {how}") from stop
        except OSError as error:
            if error.errno not in FULL or not (run / "checkpoints" / "last.ckpt").is_file():
                raise
            again = f"then go on from the last checkpoint with -t --resume {shlex.quote(str(run))}"
            raise ValueError(f"step {trainer.global_step}: {in_words(error)}; {again}") from error
        LOG.info("finished at step %d; checkpoints in %s", trainer.global_step, run / "checkpoints")
        if trainer.is_global_zero:
            draw_run(run)
    elif "validation" in data.dataset_configs:
        with errors_in_words(), ended_together(trainer, run):
            trainer.validate(model, datamodule=data, ckpt_path=weights, weights_only=True)
    if not options.no_test and "test" in data.dataset_configs:
        LOG.info("the figures of validation, on the test set:")
        data.setup("test")
        metrics, trainer.loggers = trainer.loggers[:1], []  # with their names, they would be points of its curves
        (figures,) = trainer.validate(model, data.test_dataloader(), ckpt_path=weights, weights_only=True)
        for logger in metrics:
            named = {f"test/{name.removeprefix('val/')}": value for name, value in figures.items()}
            logger.log_metrics(named, trainer.global_step - 1)
            logger.save()


def nothing_to_save(number: int, frame: Any) -> None:  # noqa: ARG001
    """Handles a signal that asks for a checkpoint before the first step or after the last one."""
    os.write(2, f"{signal.Signals(number).name}: no step is in hand, nothing to save\n".encode())


@command_line
def main() -> None:
    """The command ``python main.py``."""
    early = {signal.SIGINT: stop_at_once, signal.SIGUSR1: nothing_to_save}
    with handled(early):
        options = parse()
        leave_words_to_first()
        try:
            train(options)
        except Exception:
            if options.debug:
                traceback.print_exc()
                if sys.stdin.isatty():
                    pdb.post_mortem()
            raise


if __name__ == "__main__":
    main()
