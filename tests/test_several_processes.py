"""Several processes of one run: who sees which picture, who writes what, and what happens if one of them is killed."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pictures import contents, write_pictures
from several import difference, environment, logged, on_two, start, train, write
from small_models import IDENTITY, unet
from toy import rdm_config

DEALT = """
import json, sys, torch
from ldm.data import DataModule
rank, folder, pictures = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
found = []
for held_out in pictures:
    data = DataModule(2, train=pictures[0], validation=held_out)
    loader = data.train_dataloader()
    loader.sampler.set_epoch(1)
    found.append([[list(batch["id"]) for batch in each] for each in (loader, data.val_dataloader())])
with open(f"{folder}/{rank}.json", "w") as file:
    json.dump(found, file)
"""


def test_each_picture_is_dealt_to_one_process(tmp_path: Path) -> None:
    counts = (14, 8, 9, 10, 2, 3)
    pictures = [write_pictures(tmp_path / str(count), count) for count in counts]
    (tmp_path / "deal.py").write_text(DEALT)
    words = [sys.executable, str(tmp_path / "deal.py")]
    processes = [
        subprocess.Popen([*words, rank, str(tmp_path), json.dumps(pictures)], env=environment()) for rank in "01"
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    one, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in "01")
    for count, (train_one, held_one), (train_two, held_two) in zip(counts, one, other, strict=True):
        seen = [name for batch in (*train_one, *train_two) for name in batch]
        assert len(seen) == len(set(seen)) == 12  # three whole batches of four, of fourteen pictures
        shown = [name for batch in (*held_one, *held_two) for name in batch]
        assert len(shown) == len(set(shown)) == count
        assert len(held_one) == len(held_two) and all(held_one) and all(held_two)


def diffusion(folder: Path, count: int = 16) -> str:
    """Writes the config of a tiny diffusion model with batches of four, and returns its path."""
    network = {"unet_config": unet(), "first_stage_config": IDENTITY, "timesteps": 20, "learning_rate": 1e-4}
    model = {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": network}
    pictures = write_pictures(folder / "pictures", count)
    data = {"target": "ldm.data.DataModule", "params": {"batch_size": 4, "train": pictures}}
    return write(folder, model, data, max_steps=100_000)


def further_process(process: "subprocess.Popen[str]") -> int:
    """The number of the process that a run has started beside its first one."""
    parents = {}
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if any(word.endswith(b"main.py") for word in words):
            parents[int(folder.name)] = parent
    (found,) = [number for number, parent in parents.items() if parent == process.pid]
    return found


@pytest.mark.parametrize("victim", ["first", "second"])
def test_a_killed_process_ends_the_run_which_goes_on_with_one(victim: str, tmp_path: Path) -> None:
    path, run = diffusion(tmp_path), tmp_path / "run"
    often = "lightning.checkpoint.every_n_train_steps=3"
    process = start(tmp_path, "-b", path, "-p", "run", often, *on_two(4))
    give_up = time.monotonic() + 120
    while not (run / "checkpoints" / "last.ckpt").is_file() and process.poll() is None:
        assert time.monotonic() < give_up
        time.sleep(0.02)
    other = further_process(process)
    os.kill(process.pid if victim == "first" else other, signal.SIGKILL)
    said, _ = process.communicate(timeout=60)  # all processes have closed their output
    lines = [line for line in said.splitlines() if line.startswith("error") or "Traceback" in line]
    assert len(lines) == 1 and "-t --resume run" in lines[0], said
    assert ("process 0" if victim == "first" else "process 1 of 2 was ended by SIGKILL") in lines[0]

    reached = int(weights_step(run))
    end = [f"lightning.trainer.max_steps={reached + 7}", "data.params.batch_size=4"]
    train(tmp_path, "--resume", "run", *end, "lightning.trainer.devices=1")
    train(tmp_path, "-b", path, "-p", "whole", *end)
    rows = [[row for row in logged(each, "train/") if row["step"] >= reached] for each in (run, tmp_path / "whole")]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]] == list(range(reached, reached + 7))
    got, expected = ([row["train/loss"] for row in found] for found in rows)
    assert got == pytest.approx(expected, rel=1e-5)
    assert len(set(expected)) == 7


def weights_step(run: Path) -> int:
    """The step of the last checkpoint of a run."""
    import torch

    return int(torch.load(run / "checkpoints" / "last.ckpt", weights_only=False)["global_step"])


def test_a_run_goes_on_with_two_processes_and_sees_the_rest_of_the_epoch(tmp_path: Path) -> None:
    path = diffusion(tmp_path, 32)
    for run in ("run", "whole"):
        train(tmp_path, "-b", path, "-p", run, "lightning.trainer.max_steps=3")
    train(tmp_path, "--resume", "run", "lightning.trainer.max_steps=12", *on_two(4))
    train(tmp_path, "--resume", "whole", "lightning.trainer.max_steps=12")
    rows = [logged(tmp_path / run, "train/") for run in ("run", "whole")]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]] == list(range(3, 12))
    assert [r["train/loss"] for r in rows[0]] == pytest.approx([r["train/loss"] for r in rows[1]], rel=1e-5)


def test_the_first_process_prepares_and_writes_what_one_process_does(tmp_path: Path) -> None:
    config = rdm_config(tmp_path, learning_rate=1e-4)
    path = write(tmp_path, **config, max_steps=11)
    images = {"target": "rdm.callbacks.RetrievalImageLogger", "params": {"every_n_steps": 4, "max_images": 2}}
    words = ["-b", path, "lightning.checkpoint.every_n_train_steps=4"]
    (tmp_path / "images.yaml").write_text(json.dumps({"lightning": {"callbacks": {"images": images}}}))
    words += ["images.yaml"]
    two = train(tmp_path, *words, "-l", "two", *on_two(4))
    built = contents(tmp_path / "database")
    one = train(tmp_path, *words, "-l", "one")
    for said, times in ((two, 1), (one, 0)):
        assert said.count("wrote neighbour table") == 2 * times, said  # of training and validation
    assert contents(tmp_path / "database") == built
    for said in (one, two):
        assert said.count("INFO main: run folder") == 1 and said.count("INFO main: finished at step 11") == 1
    (run,), (other,) = (list((tmp_path / name).iterdir()) for name in ("one", "two"))
    assert sorted(contents(run)) == sorted(contents(other))
    steps = [[row["step"] for row in csv.DictReader((each / "metrics.csv").open())] for each in (run, other)]
    assert steps[0] == steps[1]
    assert max(difference(run, other).values()) < 1e-5
