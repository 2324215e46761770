"""What ``main.py --dry-run`` says of a training: sizes that can be counted, and nothing that stays."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from toy import ROOT, rarm_config, rdm_config

import main
from ldm.config import read_run_config, write_config
from ldm.dry_run import TIMED, Cost, dry_run
from ldm.util import instantiate_from_config


def cost_of(folder: Path, config: dict[str, Any], *settings: str) -> tuple[Cost, Any]:
    write_config(folder / "config.yaml", config)
    run_config = read_run_config([folder / "config.yaml"], settings)
    pl.seed_everything(0)
    model, data = instantiate_from_config(run_config.model), instantiate_from_config(run_config.data)
    return dry_run(run_config, model, data, lambda few, place: main.build_trainer(few, place, "", True)), model


def test_sizes_are_those_of_the_model_and_its_optimiser(tmp_path: Path) -> None:
    cost, model = cost_of(tmp_path, rdm_config(tmp_path), "lightning.trainer.max_steps=1000")
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    assert cost.trained == trained and cost.parameters == sum(each.numel() for each in model.parameters()) > trained
    assert cost.gradients == 4 * trained
    assert 8 * trained <= cost.optimiser <= 8 * trained + 4 * len(list(model.parameters()))  # AdamW, and its counts
    assert cost.weights >= 4 * cost.parameters and cost.activations > 0 and cost.peak > 1e8
    assert cost.seconds > 0 and cost.tflop > 0 and cost.steps == 1000
    assert cost.images == read_run_config([tmp_path / "config.yaml"]).batch_size


def test_a_larger_batch_keeps_more_and_accumulation_takes_more_operations(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    base = rdm_config(tmp_path)
    size = base["data"]["params"]["batch_size"]
    small, _ = cost_of(tmp_path, base)
    large, _ = cost_of(tmp_path, base, f"data.params.batch_size={2 * size}")
    twice, _ = cost_of(tmp_path, base, "lightning.trainer.accumulate_grad_batches=2")
    assert large.activations > 1.7 * small.activations and large.images == 2 * small.images == twice.images
    assert large.tflop == pytest.approx(2 * small.tflop, rel=0.1) == pytest.approx(twice.tflop, rel=0.2)
    assert twice.activations == pytest.approx(small.activations, rel=0.05)


def test_other_stages_are_measured_too(tmp_path: Path) -> None:
    cost, model = cost_of(tmp_path, rarm_config(tmp_path))
    assert cost.trained == sum(each.numel() for each in model.parameters() if each.requires_grad) > 0
    assert "time: " in "\n".join(cost.lines())


def test_the_words_say_memory_time_and_what_is_missing() -> None:
    cost = Cost(
        12_000_000, 10_000_000, 48_000_000, 40_000_000, 80_000_000, 1_000_000_000, 3 * 10**9, 0.25, 0.5, 64, 7200
    )
    memory, time = list(cost.lines())[1], list(cost.lines())[3]
    assert "weights 48.0 MB, gradients 40.0 MB, optimiser 80.0 MB, activations 1.00 GB; together 1.17 GB" in memory
    assert time == "time: 7,200 steps take 1.0 h, without validations, grids and checkpoints"
    assert f"128 images a second (median of {TIMED} steps)" in list(cost.lines())[2]
    endless = Cost(1, 1, 4, 4, 8, 1, 1, 0.1, 1.0, 1, None)
    assert list(endless.lines())[3] == "time: the config limits no steps; give lightning.trainer.max_steps"


def test_the_command_says_it_and_leaves_no_run(tmp_path: Path) -> None:
    config = rdm_config(tmp_path)
    write_config(tmp_path / "config.yaml", config)
    command = [sys.executable, str(ROOT / "main.py"), "--dry-run", "-b", str(tmp_path / "config.yaml")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)  # noqa: S603
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()[-4:]
    assert [line.partition(":")[0] for line in lines] == ["parameters", "memory", "a step", "time"]
    assert re.search(r"[\d.]+ TFLOP, [\d.e-]+ s, ", lines[2])
    assert not (tmp_path / "logs").exists()
    assert torch.get_num_threads() >= 1
