"""First stages are read from shipped folders, runs, released checkpoints and whole diffusion models."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from small_models import VQ, randomise
from torch import Tensor
from toy import STYLES

from ldm.checkpoint import write_checkpoint, write_weights
from ldm.config import write_config
from ldm.data import ParquetImages
from ldm.metrics import psnr
from ldm.models.first_stage import load_first_stage
from ldm.util import instantiate_from_config

ROOT = Path(__file__).parents[3]


@pytest.fixture
def state() -> dict[str, Tensor]:
    model = instantiate_from_config(VQ)
    randomise(model)
    return model.state_dict()


def same(path: Path, state: dict[str, Tensor], config: Path | None = None) -> bool:
    found = load_first_stage(path, config)
    own = found.model.state_dict()
    assert found.resolution == 8 and not found.model.training
    return own.keys() == state.keys() and all(torch.equal(own[name].cpu(), state[name]) for name in own)


def test_folders_runs_and_files_are_read(tmp_path: Path, state: dict[str, Tensor]) -> None:
    config = copy.deepcopy(VQ)
    config["params"] |= {"ckpt_path": "gone.ckpt", "lossconfig": {"target": "ldm.modules.losses.DummyLoss"}}
    write_config(tmp_path / "shipped" / "config.yaml", {"model": config})
    write_weights(tmp_path / "shipped" / "model.safetensors", state)
    write_config(tmp_path / "run" / "config.yaml", {"model": config})
    write_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt", {**state, "loss.logvar": torch.zeros(())})
    write_checkpoint(tmp_path / "released" / "model.ckpt", state)
    assert same(tmp_path / "shipped", state)
    assert same(tmp_path / "run", state)
    assert same(tmp_path / "run" / "checkpoints" / "last.ckpt", state)
    assert same(tmp_path / "released" / "model.ckpt", state, tmp_path / "run" / "config.yaml")
    with pytest.raises(FileNotFoundError, match="--config"):
        load_first_stage(tmp_path / "released" / "model.ckpt")
    with pytest.raises(FileNotFoundError, match="no weights of a first stage at"):
        load_first_stage(tmp_path / "nowhere")


def test_the_stage_inside_a_diffusion_model_and_the_running_average_are_taken(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    target = "ldm.models.diffusion.ddpm.LatentDiffusion"
    write_config(tmp_path / "config.yaml", {"model": {"target": target, "params": {"first_stage_config": VQ}}})
    inside = {f"first_stage_model.{name}": value for name, value in state.items()}
    beside = {"first_stage_model.model_ema.decay": torch.ones(()), "scale_factor": torch.ones(())}
    write_weights(tmp_path / "model.safetensors", {**inside, **beside})
    assert same(tmp_path, state)
    write_config(tmp_path / "run" / "config.yaml", {"model": VQ})
    average = {"model_ema." + name.replace(".", ""): value for name, value in state.items()}
    raw = {name: torch.zeros_like(value) for name, value in state.items()}
    write_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt", {**raw, **average})
    assert same(tmp_path / "run", state)
    write_config(tmp_path / "other" / "config.yaml", {"model": {"target": "torch.nn.Identity"}})
    write_weights(tmp_path / "other" / "model.safetensors", state)
    with pytest.raises(ValueError, match=r"torch.nn.Identity"):
        load_first_stage(tmp_path / "other")


@pytest.mark.parametrize(("name", "least"), [("emoji-vq-f4", 28.0), ("emoji-kl-f4", 29.0)])
@torch.no_grad()
def test_a_shipped_stage_gives_held_out_pictures_back(name: str, least: float) -> None:
    stage = load_first_stage(ROOT / "models" / "first_stage" / name)
    trained = {"style": list(STYLES)}
    held = ParquetImages(str(ROOT / "data" / "emoji"), stage.resolution, split="val", where=trained)
    images = torch.stack([held[place]["image"] for place in range(0, len(held), 20)])
    made = stage.model.reconstruct(images).clamp(-1, 1)
    assert float(psnr(images, made).mean()) > least
