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
from small_models import VQ

from ldm.callbacks import LastStep
from ldm.checkpoint import read_metadata, read_weights
from ldm.config import read_config, write_config
from ldm.data import DataModule
from ldm.guards import DiscriminatorWatch, FiniteSteps, LatentStatistics
from ldm.models.autoencoder import VQModel
from ldm.run import export_run

LOSS = {
    "target": "ldm.modules.losses.vqperceptual.VQLPIPSWithDiscriminator",
    "params": {"disc_start": 1, "disc_num_layers": 1, "disc_ndf": 4},
}


def trainer(run: Path, steps: int, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    from pytorch_lightning.callbacks import ModelCheckpoint

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
    assert f"the last good checkpoint is {run / 'checkpoints/last.ckpt'}" in message
    kept = read_weights(run / "checkpoints" / "last.ckpt")
    assert all(torch.isfinite(value).all() for value in kept.values())
    assert kept["encoder.conv_in.weight"].abs().max() > 1e20  # it is that of step 1
    batch = run / "non_finite_batch.safetensors"
    assert read_weights(batch)["image"].shape == (2, 3, 8, 8)
    assert len(json.loads(read_metadata(batch)["id"])) == 2


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
