"""What watches a run."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pictures import write_pictures
from pytorch_lightning.callbacks import ModelCheckpoint
from small_models import VQ

from ldm.callbacks import LastStep
from ldm.checkpoint import read_metadata, read_weights
from ldm.config import read_config, write_config
from ldm.data import DataModule
from ldm.guards import DiscriminatorWatch, FiniteSteps, LatentStatistics
from ldm.models.autoencoder import VQModel
from ldm.run import export_run
from ldm.saving import AtomicCheckpoints

LOSS = {
    "target": "ldm.modules.losses.vqperceptual.VQLPIPSWithDiscriminator",
    "params": {"disc_start": 1, "disc_num_layers": 1, "disc_ndf": 4},
}


def trainer(run: Path, steps: int, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    keep = ModelCheckpoint(run / "checkpoints", every_n_train_steps=1, save_last=True, save_top_k=0)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "logger": False}
    return pl.Trainer(max_steps=steps, callbacks=[keep, *callbacks], num_sanity_val_steps=0, **quiet, **options)


def vq(**params: Any) -> VQModel:
    torch.manual_seed(0)
    return VQModel(**VQ["params"], lossconfig=LOSS, **params)


def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_batch_and_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    data = DataModule(2, train=write_pictures(tmp_path / "pictures", 6))
    model = vq(learning_rate=1e30)  # the first step is finite, the loss after it is not
    with pytest.raises(ValueError) as caught:
        trainer(run, 5, FiniteSteps(run), LastStep(run / "checkpoints/last.ckpt")).fit(model, datamodule=data)
    message = str(caught.value)
    assert message.startswith("step 1: the loss is nan; the batch is in ") and "\n" not in message
    assert f"{run / 'checkpoints/last.ckpt'} is not healthy" in message and "begin again" in message
    kept = read_weights(run / "checkpoints" / "last.ckpt")
    assert all(torch.isfinite(value).all() for value in kept.values())
    assert kept["encoder.conv_in.weight"].abs().max() > 1e20  # it is that of step 1
    batch = run / "non_finite_batch.safetensors"
    assert read_weights(batch)["image"].shape == (2, 3, 8, 8)
    assert len(json.loads(read_metadata(batch)["id"])) == 2


class Steps(pl.LightningModule):
    """Its loss is its weight, which each step sets to the next of some numbers; that of the weight 1e4 is NaN."""

    def __init__(self, *numbers: float) -> None:
        super().__init__()
        self.numbers, self.w = numbers, torch.nn.Parameter(torch.tensor(numbers[0]))

    def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:  # noqa: ARG002
        return self.w * (torch.nan if self.w == 1e4 else 1)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any) -> None:  # noqa: ARG002
        before = self.global_step
        optimizer.step(closure)
        with torch.no_grad():
            self.w.fill_(self.numbers[before + 1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize(
    ("losses", "healthy", "said"),
    [
        ((1.0, 0.9, 0.8, 1e4), 2, ("last.ckpt is not healthy: it has this very loss", "0.8 (usual: 0.95)")),
        ((1.0, 0.9, 20.0, 30.0, 1e4), 1, ("last.ckpt is not healthy: it has this very loss", "0.9 (usual: 1)")),
        ((1.0, 1e4), None, ("no other checkpoint was kept",)),
    ],
)
def test_the_last_healthy_checkpoint_is_kept_and_named(
    losses: tuple[float, ...], healthy: int | None, said: tuple[str, ...], tmp_path: Path
) -> None:
    """The loss is NaN for the last weights, which ``last.ckpt`` holds."""
    data = DataModule(2, train=write_pictures(tmp_path / "pictures", 2))
    with pytest.raises(ValueError) as caught:
        trainer(tmp_path, 9, FiniteSteps(tmp_path), plugins=AtomicCheckpoints()).fit(Steps(*losses), datamodule=data)
    assert all(each in str(caught.value) for each in said), caught.value
    assert read_weights(tmp_path / "checkpoints/last.ckpt")["w"] == 1e4
    assert (f"--resume {tmp_path / 'checkpoints/healthy.ckpt'}" in str(caught.value)) is (healthy is not None)
    if healthy is not None:
        assert read_weights(tmp_path / "checkpoints/healthy.ckpt")["w"] == pytest.approx(losses[healthy])
        card = json.loads((tmp_path / "checkpoints/healthy.json").read_text())
        assert (card["step"], card["loss"]) == (healthy, pytest.approx(losses[healthy]))


def test_a_checkpoint_is_healthy_once_its_loss_has_shown(tmp_path: Path) -> None:
    """A run that goes on for a while after its checkpoint, and one that goes on from it and then diverges at once."""
    data = DataModule(2, train=write_pictures(tmp_path / "pictures", 2))
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}

    def message(*losses: float, resume: Path | None = None) -> str:
        keep = ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=2, save_last=True, save_top_k=0)
        callbacks = [keep, FiniteSteps(tmp_path)]
        fit = pl.Trainer(max_steps=9, callbacks=callbacks, plugins=AtomicCheckpoints(), **options)
        with pytest.raises(ValueError) as caught:
            fit.fit(Steps(*losses), datamodule=data, ckpt_path=resume, weights_only=True)
        return str(caught.value)

    last = tmp_path / "checkpoints" / "last.ckpt"
    assert f"{last}, is healthy: it has a loss of 0.8 (usual: 0.95)" in message(1.0, 0.9, 0.8, 1e4)
    again = message(1.0, 0.9, 0.8, 0.7, 1e4, resume=last)  # writes step 4, which is the one that diverges
    assert "last.ckpt is not healthy: it has this very loss" in again and "of step 2, with a loss of 0.8" in again
    assert (tmp_path / "checkpoints" / "healthy.ckpt").stat().st_nlink == 1
    gone = message(1.0, 0.9, 0.8, 0.7, 50.0, 1e4, resume=last.with_name("healthy.ckpt"))  # step 4 is far off
    assert "last.ckpt is not healthy: it has a loss of 50 (usual: 0.8)" in gone and "of step 2, with" in gone
    still = message(1.0, 0.9, 0.8, 0.7, 50.0, 60.0, 1e4, resume=last)  # which is not what is usual when it is resumed
    assert "last.ckpt is not healthy: it has this very loss" in still and "of step 2, with a loss of 0.8" in still


class Root(pl.LightningModule):
    """Its loss is finite, its gradient is not."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(2))

    def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:  # noqa: ARG002
        return (self.w * 0).sqrt().sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_gradient_that_is_not_finite_does_not_reach_the_weights(tmp_path: Path) -> None:
    data = DataModule(2, train=write_pictures(tmp_path / "pictures", 2))
    model = Root()
    with pytest.raises(ValueError, match=r"step 0.*gradient of w .*no checkpoint"):
        trainer(tmp_path / "run", 5, FiniteSteps(tmp_path / "run")).fit(model, datamodule=data)
    assert model.w.tolist() == [1, 1]


@pytest.mark.parametrize(("algorithm", "factor"), [("value", "inf"), ("norm", "nan")])
def test_a_gradient_is_looked_at_before_it_is_clipped(algorithm: str, factor: str, tmp_path: Path) -> None:
    """Clipping by value would make a step of it, clipping by norm spoil all the others."""
    data, model = DataModule(2, train=write_pictures(tmp_path / "pictures", 2)), vq()
    model.decoder.conv_in.bias.register_hook(lambda gradient: gradient * float(factor))
    before = model.decoder.conv_in.bias.detach().clone()
    clip = {"gradient_clip_val": 1.0, "gradient_clip_algorithm": algorithm}
    with pytest.raises(ValueError, match=r"step 0.*decoder.conv_in.bias"):
        trainer(tmp_path / "run", 5, FiniteSteps(tmp_path / "run"), **clip).fit(model, datamodule=data)
    assert torch.equal(model.decoder.conv_in.bias, before)


class Critic(pl.LightningModule):
    """Logs the given losses of a discriminator, one a step."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        self.losses, self.w = losses, torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:  # noqa: ARG002
        self.log("train/disc_loss", self.losses[self.global_step])
        self.log_dict({"train/logits_real": 2.5, "train/logits_fake": -3.5})
        return self.w.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_discriminator_that_has_won_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = DataModule(2, train=write_pictures(tmp_path / "pictures", 4))
    caplog.set_level(logging.WARNING, logger="ldm.guards")

    def reports(losses: list[float]) -> list[str]:
        caplog.clear()
        watch = DiscriminatorWatch(every_n_steps=2, patience=3)
        trainer(tmp_path / "run", len(losses), watch).fit(Critic(losses), datamodule=data)
        return [record.message for record in caplog.records if record.name == "ldm.guards"]

    assert reports([0.01] * 4 + [0.9, 0.9] + [0.01] * 4) == []
    [message] = reports([0.9, 0.9] + [0.01] * 10)
    assert re.findall(r"-?\d+(?:\.\d+)?", message) == ["8", "0.05", "3", "2.5", "-3.5"]  # step to logits


def test_latents_are_measured_and_the_scale_factor_goes_with_the_weights(tmp_path: Path) -> None:
    run, pictures = tmp_path / "run", write_pictures(tmp_path / "pictures", 5)
    data = DataModule(2, train=pictures, validation=pictures)  # the last batch is smaller
    model = vq(use_ema=True)
    trainer(run, 2, LatentStatistics(run / "latents.json"), val_check_interval=2).fit(model, datamodule=data)
    images = torch.stack([data.datasets["validation"][i]["image"] for i in range(5)])
    with torch.no_grad(), model.averaged():
        latent = model.eval().encode(images)
    measured = json.loads((run / "latents.json").read_text())
    assert measured["step"] == 2
    assert measured["latent_mean"] == pytest.approx(latent.mean().item(), rel=1e-4, abs=1e-6)
    assert measured["latent_std"] == pytest.approx(latent.std(correction=0).item(), rel=1e-4)
    assert (measured["scale_factor"] * latent).std(correction=0).item() == pytest.approx(1.0, rel=1e-4)
    write_config(run / "config.yaml", {"model": VQ})
    written = export_run(run, tmp_path / "shipped")
    assert float(read_metadata(written)["scale_factor"]) == measured["scale_factor"]
    first = (tmp_path / "shipped" / "config.yaml").read_text().splitlines()[0]
    assert f"scale_factor {measured['scale_factor']:.6g}" in first
    assert read_config([tmp_path / "shipped" / "config.yaml"]) == {"model": VQ}
