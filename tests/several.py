"""Runs of main.py on one process and on several, for tests that compare them."""

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.config import write_config

ROOT = Path(__file__).resolve().parents[1]
TRAINER: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1}


def environment() -> dict[str, str]:
    """That of a process of its own, which is none of the processes of another run."""
    words = {name: value for name, value in os.environ.items() if not name.startswith(("LOCAL_RANK", "NODE_RANK"))}
    return {**words, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(folder: Path, *words: str) -> "subprocess.Popen[str]":
    """Starts ``main.py -t`` with further words in a folder."""
    command = [sys.executable, str(ROOT / "main.py"), "-t", *words]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment(), **pipes)


def train(folder: Path, *words: str) -> str:
    """Runs ``main.py -t`` with further words in a folder, and returns what it said."""
    process = start(folder, *words)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def write(folder: Path, model: dict[str, Any], data: dict[str, Any], **trainer: Any) -> str:
    """Writes a config for one process, whose model logs every step, and returns its path."""
    lightning = {"trainer": {**TRAINER, **trainer}}
    write_config(folder / "whole.yaml", {"model": model, "data": data, "lightning": lightning})
    return str(folder / "whole.yaml")


def on_two(batch: int) -> list[str]:
    """The words that spread batches of this size over two processes."""
    trainer = [f"lightning.trainer.{word}" for word in ("strategy=ddp", "devices=2")]
    return [*trainer, f"data.params.batch_size={batch // 2}"]


def weights(run: Path) -> dict[str, Tensor]:
    """The matrices, kernels and their averages in the last checkpoint of a run.

    Biases are left out: in front of a norm they have a gradient of zero, whose rounding Adam makes steps of full size,
    without any effect. Those that have an effect show in the losses.
    """
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)["state_dict"]
    return {name: value for name, value in state.items() if value.is_floating_point() and value.ndim > 1}


def logged(run: Path, prefix: str) -> list[dict[str, float]]:
    """The rows of a run's metrics with figures of that prefix, each with its step."""
    rows = csv.DictReader((run / "metrics.csv").open())
    kept = [{k: float(v) for k, v in row.items() if v and k.startswith((prefix, "step"))} for row in rows]
    return [row for row in kept if len(row) > 1]


def difference(one: Path, other: Path) -> dict[str, float]:
    """The largest differences of two runs: of losses of training, figures of validation, and weights."""
    found = {}
    for what, prefix in (("losses", "train/"), ("validation", "val/")):
        rows = [logged(run, prefix) for run in (one, other)]
        assert [set(row) for row in rows[0]] == [set(row) for row in rows[1]] and rows[0], rows
        pairs = [(a[k], b[k]) for a, b in zip(*rows, strict=True) for k in a]
        found[what] = max(abs(a - b) / max(1.0, abs(a)) for a, b in pairs)
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    found["weights"] = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
    return found
