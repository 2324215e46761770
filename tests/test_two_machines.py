"""A run on two machines, as docs/cluster.md describes it. Both machines are this one, with one process each."""

import csv
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pictures import write_pictures
from small_models import IDENTITY, unet

from ldm.checkpoint import read_weights
from ldm.config import write_config

ROOT = Path(__file__).resolve().parents[1]


def free_port() -> int:
    """A port that no process listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def config(tmp_path: Path) -> Path:
    pictures = write_pictures(tmp_path / "pictures", 16)
    model = {
        "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
        "params": {"unet_config": unet(), "first_stage_config": IDENTITY, "timesteps": 20, "learning_rate": 1e-3},
    }
    data = {"target": "ldm.data.DataModule", "params": {"batch_size": 2, "train": pictures}}
    options = {"accelerator": "cpu", "max_steps": 3, "enable_progress_bar": False, "log_every_n_steps": 1}
    write_config(tmp_path / "tiny.yaml", {"model": model, "data": data, "lightning": {"trainer": options}})
    return tmp_path / "tiny.yaml"


def test_two_machines_train_one_model_in_one_run_folder(config: Path, tmp_path: Path) -> None:
    words = [sys.executable, "main.py", "--base", str(config), "-t", "--project", str(tmp_path / "run")]
    words += ["lightning.trainer.num_nodes=2", "lightning.trainer.devices=1", "lightning.trainer.strategy=ddp"]
    # What torchrun sets on each machine.
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
    shared |= {"LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "two"}
    started = []
    for rank in "01":
        environment = {**os.environ, **shared, "RANK": rank, "GROUP_RANK": rank, "PYTHONPATH": str(ROOT)}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(words, cwd=ROOT, env=environment, **pipes))
    said = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    run = tmp_path / "run"
    assert (run / "config.yaml").is_file() and not list(tmp_path.glob("run-*"))
    assert "model.diffusion_model.out.2.weight" in read_weights(run / "checkpoints" / "last.ckpt")
    rows = [row for row in csv.DictReader((run / "metrics.csv").open()) if row.get("train/loss")]
    assert [int(row["step"]) for row in rows] == [0, 1, 2]
