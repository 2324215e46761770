"""A run that gets a signal finishes its step, writes a checkpoint, and goes on from there as if nothing had been."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pictures import write_pictures
from pytorch_lightning.callbacks import ModelCheckpoint
from small_models import IDENTITY, unet

from ldm.callbacks import LastStep, Signals
from ldm.checkpoint import read_weights
from ldm.data import DataModule
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.stopping import Stopped, going_on

STEPS = 9


class Send(pl.Callback):
    """Sends this process signals in the middle of a step, or of a validation."""

    def __init__(self, *numbers: int, step: int, validating: bool = False, batch: int = 0, pause: float = 0.0) -> None:
        self.numbers, self.step, self.validating, self.batch, self.pause = numbers, step, validating, batch, pause
        self.figures: list[tuple[int, float]] = []

    def send(self) -> None:
        while self.numbers:
            number, *rest = self.numbers
            self.numbers = tuple(rest)
            os.kill(os.getpid(), number)
            time.sleep(self.pause)

    def on_before_backward(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and not self.validating:
            self.send()

    def on_validation_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int, *_: Any) -> None:
        del module, batch
        if self.validating and trainer.global_step == self.step and batch_idx == self.batch:
            self.send()

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.figures.append((trainer.global_step, float(trainer.callback_metrics["val/loss"])))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_pictures(tmp_path_factory.mktemp("pictures"), 10)


def fit(
    run: Path, data: dict[str, Any], *callbacks: pl.Callback, resume: bool = False, parts: int = 1
) -> LatentDiffusion:
    """Trains in a folder: nine steps, a validation after every fourth, and a checkpoint that is never due."""
    torch.manual_seed(0)
    network = unet()
    network["params"]["dropout"] = 0.2
    model = LatentDiffusion(IDENTITY, unet_config=network, timesteps=20, learning_rate=1e-3)
    last = LastStep(run / "last.ckpt")
    keep = ModelCheckpoint(run, every_n_train_steps=500, save_last=True, save_top_k=0)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "num_sanity_val_steps": 0}
    trainer = pl.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        callbacks=[keep, last, Signals(last), *callbacks],
        accumulate_grad_batches=parts,
        val_check_interval=4 * parts,
        check_val_every_n_epoch=None,
        **quiet,
    )
    path = run / "last.ckpt" if resume else None
    trainer.fit(model, datamodule=DataModule(2, train=data, validation=data), ckpt_path=path, weights_only=True)
    return model


def step_of(run: Path) -> int:
    return torch.load(run / "last.ckpt", weights_only=False)["global_step"]


@pytest.mark.parametrize(
    ("number", "step", "parts"), [(signal.SIGINT, 3, 1), (signal.SIGTERM, 4, 3), (signal.SIGTERM, 6, 1)]
)
def test_a_run_that_is_told_to_stop_finishes_its_step_and_loses_nothing(
    number: int, step: int, parts: int, data: dict[str, Any], tmp_path: Path
) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    whole, stopped = Send(step=-1), Send(number, step=step)
    expected = fit(tmp_path / "whole", data, whole, parts=parts).state_dict()
    with pytest.raises(Stopped) as caught:
        fit(tmp_path / "run", data, stopped, parts=parts)
    assert caught.value.number == number
    assert step_of(tmp_path / "run") == step + 1  # the step in which the signal came is done, with all its batches
    resumed = Send(step=-1)
    got = fit(tmp_path / "run", data, resumed, resume=True, parts=parts).state_dict()
    assert [name for name, value in expected.items() if not torch.equal(got[name], value)] == []
    skipped = {step + 1} & {4, 8}  # a validation that was due right after the checkpoint is left out
    assert stopped.figures + resumed.figures == [each for each in whole.figures if each[0] not in skipped]
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before


def test_a_run_that_is_told_to_stop_in_a_validation_does_not_go_on_with_half_of_it(
    data: dict[str, Any], tmp_path: Path
) -> None:
    whole = Send(step=-1)
    expected = fit(tmp_path / "whole", data, whole).state_dict()
    with pytest.raises(Stopped):
        fit(tmp_path / "run", data, Send(signal.SIGINT, step=4, validating=True, batch=2))
    assert step_of(tmp_path / "run") == 4
    resumed = Send(step=-1)
    got = fit(tmp_path / "run", data, resumed, resume=True).state_dict()
    assert [name for name, value in expected.items() if not torch.equal(got[name], value)] == []
    assert resumed.figures and set(resumed.figures) <= set(whole.figures)  # of whole validations


def test_sigusr1_saves_and_goes_on(data: dict[str, Any], tmp_path: Path) -> None:
    class Look(pl.Callback):
        found: dict[int, int | None] = {}

        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            self.found[trainer.global_step] = step_of(run) if (run / "last.ckpt").is_file() else None

    run, look = tmp_path / "run", Look()
    expected = fit(tmp_path / "whole", data).state_dict()
    got = fit(run, data, Send(signal.SIGUSR1, step=5), look).state_dict()
    assert look.found == dict.fromkeys(range(6)) | dict.fromkeys(range(6, STEPS), 6)
    assert [name for name, value in expected.items() if not torch.equal(got[name], value)] == []
    assert step_of(run) == STEPS


def test_a_second_signal_stops_at_once_and_leaves_the_checkpoint(data: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(Stopped):
        fit(run, data, Send(signal.SIGUSR1, step=2), Send(signal.SIGINT, signal.SIGINT, step=5, pause=1.1))
    assert step_of(run) == 3
    assert [path.name for path in run.iterdir()] == ["last.ckpt"]
    assert all(torch.isfinite(value).all() for value in read_weights(run / "last.ckpt").values())


def test_a_signal_that_comes_twice_at_once_counts_once(data: dict[str, Any], tmp_path: Path) -> None:
    """As that of ``timeout``, which sends it to the process and to its group."""
    with pytest.raises(Stopped):
        fit(tmp_path / "run", data, Send(signal.SIGTERM, signal.SIGTERM, step=5))
    assert step_of(tmp_path / "run") == 6


def test_what_stops_a_piece_of_work_says_how_to_go_on() -> None:
    stops = {KeyboardInterrupt(): "interrupted; go on", Stopped(signal.SIGTERM): "stopped by SIGTERM; go on"}
    for error, text in stops.items():
        with pytest.raises(type(error), match=text), going_on("go on"):
            raise error
