"""A first stage that was stopped, or whose process was killed, goes on as if it had not been."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from pictures import write_pictures
from small_models import VQ
from torch import Tensor

import main
from ldm.config import write_config

ROOT = Path(__file__).resolve().parents[1]
NEXT = 20  # losses that are compared


def write_first_stage(folder: Path) -> str:
    """Writes the config of a tiny VQ-GAN with everything that has a state, and returns its path."""
    pictures = write_pictures(folder / "pictures", 9)
    loss = {"disc_start": 2, "disc_num_layers": 1, "disc_ndf": 4}
    schedule = {"warm_up_steps": 3, "lr_start": 0.1, "lr_max": 1.0, "lr_min": 0.1, "max_decay_steps": 60}
    params = VQ["params"] | {
        "ddconfig": VQ["params"]["ddconfig"] | {"dropout": 0.2},
        "learning_rate": 1e-3,
        "use_ema": True,
        "warm_up_steps": 1,
        "batch_resize_range": [8, 24],
        "codebook": {"restart_every": 3},
        "lossconfig": {
            "target": "ldm.modules.losses.vqperceptual.VQLPIPSWithDiscriminator",
            "params": loss,
        },
        "scheduler_config": {"target": "ldm.lr_scheduler.LambdaWarmUpCosineScheduler", "params": schedule},
    }
    trainer = {"max_steps": 100_000, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1}
    config = {
        "model": {"target": "ldm.models.autoencoder.VQModel", "params": params},
        "data": {"target": "ldm.data.DataModule", "params": {"batch_size": 2, "train": pictures}},
        "lightning": {
            "trainer": trainer | {"gradient_clip_val": 1.0, "accumulate_grad_batches": 2},
            "checkpoint": {"every_n_train_steps": 4},
        },
    }
    write_config(folder / "gan.yaml", config)
    return str(folder / "gan.yaml")


def state(run: Path) -> dict[str, Any]:
    """What the last checkpoint of a run holds."""
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Every number and tensor of nested containers by its path."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if items is None:
        return {path: value}
    return {name: leaf for key, part in items for name, leaf in leaves(part, f"{path}/{key}").items()}


def losses(run: Path, after: int) -> list[dict[str, str]]:
    """All that a run has logged of its batches after so many steps."""
    rows = [row for row in csv.DictReader((run / "metrics.csv").open()) if row["train/loss"]]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows if int(row["step"]) >= after]


def test_a_process_killed_in_the_adversarial_phase_goes_on_with_equal_losses(tmp_path: Path) -> None:
    config, killed, whole = write_first_stage(tmp_path), tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "main.py", "-b", config, "-t", "-p", str(killed)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    with (tmp_path / "output.txt").open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)  # noqa: S603
        try:
            give_up = time.monotonic() + 120
            while not (killed / "checkpoints" / "last.ckpt").is_file() and process.poll() is None:
                assert time.monotonic() < give_up, (tmp_path / "output.txt").read_text()
                time.sleep(0.02)
        finally:
            process.kill()  # SIGKILL
    assert process.wait() == -9, (tmp_path / "output.txt").read_text()
    reached = state(killed)["global_step"]
    assert reached >= 4  # two steps into the adversarial phase, or more
    end = f"lightning.trainer.max_steps={reached + NEXT}"
    main.train(main.parse(["-t", "--resume", str(killed), end]))
    main.train(main.parse(["-b", config, "-t", "-p", str(whole), end]))

    got, expected = losses(killed, 0), losses(whole, reached)
    assert len(got) == 2 * NEXT and got == expected
    assert float(got[0]["train/disc_loss"]) > 0
    one, other = state(whole), state(killed)
    assert (one["global_step"], len(one["optimizer_states"]), len(one["lr_schedulers"])) == (reached + NEXT, 2, 2)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "code_usage", "global_step", "epoch"):
        ours, theirs = leaves(other[part]), leaves(one[part])
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            equal = torch.equal(ours[name], value) if isinstance(value, Tensor) else ours[name] == value
            assert equal, f"{part}{name}"


def test_a_run_stopped_before_its_first_checkpoint_is_due_goes_on_with_equal_losses(tmp_path: Path) -> None:
    config, stopped, whole = write_first_stage(tmp_path), tmp_path / "stopped", tmp_path / "whole"
    main.train(main.parse(["-b", config, "-t", "-p", str(whole), "lightning.trainer.max_steps=5"]))
    main.train(main.parse(["-b", config, "-t", "-p", str(stopped), "lightning.trainer.max_steps=3"]))
    main.train(main.parse(["-t", "--resume", str(stopped), "lightning.trainer.max_steps=5"]))
    assert losses(stopped, 0) == losses(whole, 3) and len(losses(stopped, 0)) == 4
