"""What a run gives to TensorBoard and to Weights & Biases, read back from their files, also after it was resumed."""

from __future__ import annotations

import csv
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import write_pictures
from PIL import Image
from small_models import DDCONFIG, IDENTITY, unet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy import rdm_config

import main
from ldm.config import read_run_config, write_config
from ldm.convert.lightning import our_lightning
from ldm.loggers import TensorBoard, build_loggers, earlier_id

BOARD, WANDB = "ldm.loggers.TensorBoard", "ldm.loggers.WeightsAndBiases"
SHOWN = {"target": "ldm.callbacks.ImageLogger", "params": {"every_n_steps": 4, "max_images": 2}}


def config_of(folder: Path, model: dict[str, Any] | None = None, **lightning: Any) -> str:
    """A config of a run of seven steps of a tiny diffusion model, or of another model, in epochs of five steps."""
    pictures = write_pictures(folder / "pictures", 10)
    params = {"unet_config": unet(), "first_stage_config": IDENTITY, "timesteps": 20, "learning_rate": 1e-3}
    trainer = {"max_steps": 7, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1}
    content = {
        "model": model or {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params},
        "data": {
            "target": "ldm.data.DataModule",
            "params": {"batch_size": 2, "train": pictures, "validation": pictures},
        },
        "lightning": {"trainer": trainer, "callbacks": {"images": SHOWN}, **lightning},
    }
    write_config(folder / "tiny.yaml", content)
    return str(folder / "tiny.yaml")


def read_events(run: Path) -> EventAccumulator:
    return EventAccumulator(str(run / "tensorboard"), {"images": 0, "histograms": 0}).Reload()


def curve(events: EventAccumulator, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(name)]


def rows(run: Path, name: str) -> list[tuple[int, float]]:
    """Step and value of a figure in the newest metrics file of a run."""
    with (run / "metrics.csv").open() as lines:
        return [(int(row["step"]), float(row[name])) for row in csv.DictReader(lines) if row.get(name)]


def pixels(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(encoded)))


def test_tensorboard_has_the_figures_and_grids_and_a_resumed_run_goes_on(tmp_path: Path) -> None:
    """The second part goes on from a checkpoint of step 3 although the first one reached step 5, as after a crash."""
    config = config_of(tmp_path, logger="tensorboard", checkpoint={"every_n_train_steps": 3, "save_top_k": 1})
    whole, run = tmp_path / "whole", tmp_path / "run"
    pictures = read_run_config([config]).data["params"]["validation"]
    test_set = f"data.params.test={{target: {pictures['target']}, params: {pictures['params']}}}"
    main.train(main.parse(["-b", config, "-t", "-p", str(whole), test_set]))
    main.train(main.parse(["-b", config, "-t", "-p", str(run), "lightning.trainer.max_steps=5"]))
    assert [step for step, _ in curve(read_events(run), "train/loss")] == [0, 1, 2, 3, 4]
    shutil.copy(run / "checkpoints" / "best.ckpt", run / "checkpoints" / "last.ckpt")
    main.train(main.parse(["-t", "--resume", str(run), "lightning.trainer.max_steps=7"]))
    events, expected = read_events(run), read_events(whole)
    assert [step for step, _ in curve(expected, "val/loss")] == [4]  # not that of the test set
    ((step, loss),) = rows(whole, "test/loss")
    assert step == 6 and loss != pytest.approx(curve(expected, "val/loss")[0][1])
    for name in ("train/loss", "val/loss"):
        for found in (curve(events, name), rows(whole, name)):
            assert np.array(found) == pytest.approx(np.array(curve(expected, name)))
    assert [step for step, _ in curve(events, "train/loss")] == list(range(7))
    assert [(image.step, image.width, image.height) for image in events.Images("images")] == [(3, 32, 22), (6, 32, 22)]
    for image, file in zip(events.Images("images"), ("0000004.png", "0000007.png"), strict=True):
        assert np.array_equal(pixels(image.encoded_image_string), np.asarray(Image.open(run / "images" / file)))
    assert pixels((run / "losses.png").read_bytes()).shape[:2] == (385, 660)
    assert len(list((run / "tensorboard").glob("events*"))) == 2 and (run / "metrics-0.csv").is_file()


def test_a_grid_with_neighbours_and_step_times_are_there(tmp_path: Path) -> None:
    config = rdm_config(tmp_path)
    grids = {"target": "rdm.callbacks.RetrievalImageLogger", "params": {"max_images": 3}}
    trainer = {"max_steps": 51, "accelerator": "cpu", "enable_progress_bar": False, "limit_val_batches": 1}
    trainer |= {"check_val_every_n_epoch": 10, "log_every_n_steps": 10}
    config["lightning"] = {"trainer": trainer, "callbacks": {"images": grids}, "logger": "tensorboard"}
    write_config(tmp_path / "toy.yaml", config)
    main.train(main.parse(["-b", str(tmp_path / "toy.yaml"), "-t", "--no-test", "-p", str(tmp_path / "run")]))
    events = read_events(tmp_path / "run")
    (grid,) = events.Images("images")
    assert (grid.step, grid.width, grid.height) == (50, 2 + 5 * 18, 2 + 3 * 18)  # input, two neighbours, two images
    file = np.asarray(Image.open(tmp_path / "run" / "images" / "0000051.png"))
    assert np.array_equal(pixels(grid.encoded_image_string), file)
    ((step, seconds),) = curve(events, "time/step_seconds")
    assert step == 49 and 0 < seconds < 10
    assert [step for step, _ in curve(events, "learning_rate")] == [49]


def test_the_use_of_codes_is_a_histogram(tmp_path: Path) -> None:
    loss = {
        "target": "ldm.modules.losses.vqperceptual.VQLPIPSWithDiscriminator",
        "params": {"disc_start": 2, "disc_num_layers": 1, "disc_ndf": 4, "perceptual_weight": 0.0},
    }
    params = {"embed_dim": 3, "n_embed": 8, "ddconfig": DDCONFIG, "lossconfig": loss, "learning_rate": 1e-4}
    model = {"target": "ldm.models.autoencoder.VQModel", "params": params}
    run = tmp_path / "run"
    main.train(main.parse(["-b", config_of(tmp_path, model, logger="tensorboard"), "-t", "-p", str(run)]))
    events = read_events(run)
    (event,) = events.Histograms("val/use_of_codes")
    assert event.step == 4 and event.histogram_value.num == 8
    assert event.histogram_value.sum == pytest.approx(8)  # a mean of 1
    unused = (event.histogram_value.min == 0) == (curve(events, "val/code_usage")[0][1] < 1)
    assert unused and [image.step for image in events.Images("images")] == [3, 6]


def records(file: Path) -> Iterator[Any]:
    """The records in a file of Weights & Biases: protocol buffers in a log like that of LevelDB, blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, parts = file.read_bytes(), 7, b""
    while place < len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        parts, place = parts + data[place + 7 : place + 7 + size], place + 7 + size
        if kind in (1, 4):  # a whole record, or its last part
            yield Record.FromString(parts)
            parts = b""


def history(file: Path) -> list[dict[str, Any]]:
    found = [record.history.item for record in records(file) if record.WhichOneof("record_type") == "history"]
    return [{item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items} for items in found]


def test_weights_and_biases_goes_on_with_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config, run = config_of(tmp_path, logger=["wandb", "tensorboard"]), tmp_path / "run"
    main.train(main.parse(["-b", config, "-t", "-p", str(run), "lightning.trainer.max_steps=4"]))
    known = earlier_id(run)
    assert known
    run = run.rename(tmp_path / "moved")
    main.train(main.parse(["-t", "--resume", str(run), "lightning.trainer.max_steps=7"]))
    files = sorted((run / "wandb").glob(f"offline-run-*-{known}/run-{known}.wandb"))
    assert len(files) == len(list((run / "wandb").glob("*run-*-*"))) == 2
    logged = [row for file in files for row in history(file)]
    losses = [(row["trainer/global_step"], row["train/loss"]) for row in logged if "train/loss" in row]
    assert np.array(losses) == pytest.approx(np.array(curve(read_events(run), "train/loss")))
    assert [step for step, _ in losses] == list(range(7))
    grids = [(row["trainer/global_step"], row["images.filenames"]) for row in logged if "images.filenames" in row]
    assert [step for step, _ in grids] == [3, 6]
    for file, (_, (name,)), grid in zip(files, grids, ("0000004.png", "0000007.png"), strict=True):
        expected = np.asarray(Image.open(run / "images" / grid))
        assert np.array_equal(np.asarray(Image.open(file.parent / "files" / name)), expected)


def test_nobody_logged_in_ends_in_one_line(tmp_path: Path) -> None:
    """In a process of its own, as wandb keeps what it read of the environment. Nothing is sent: there is no key."""
    pytest.importorskip("wandb")
    config = config_of(tmp_path, logger="wandb")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    folders = {name: str(tmp_path / "home") for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR")}
    done = subprocess.run(
        [sys.executable, "main.py", "-b", config, "-t", "-p", str(tmp_path / "run")],
        cwd=Path(main.__file__).parent,
        env={**kept, **folders, "WANDB_MODE": "online", "NETRC": str(tmp_path / "none")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    [message] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "lightning.logger: wandb: " in message and "'wandb login', or give params: {offline: true}" in message


def test_the_id_is_that_of_the_newest_folder(tmp_path: Path) -> None:
    assert earlier_id(tmp_path) is None
    for name in ("run-20250102_000000-a", "offline-run-20250103_000000-my-run", "offline-run-20250101_000000-b"):
        (tmp_path / "wandb" / name).mkdir(parents=True)
    (tmp_path / "wandb" / "latest-run").symlink_to("nowhere")
    assert earlier_id(tmp_path) == "my-run"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("tensorboard", [(BOARD, {})]),
        ("testtube", [(BOARD, {})]),
        (["wandb", "tensorboard"], [(WANDB, {}), (BOARD, {})]),
        (None, []),
        ("csv", []),
        ({"params": {"save_dir": "x"}}, [(BOARD, {})]),  # CompVis' code takes TestTube without a target
        (
            {"target": "pytorch_lightning.loggers.TensorBoardLogger", "params": {"save_dir": "x", "flush_secs": 5}},
            [(BOARD, {"flush_secs": 5})],
        ),
        ({"target": "pytorch_lightning.loggers.test_tube.TestTubeLogger", "params": {"name": "x"}}, [(BOARD, {})]),
        (
            {
                "target": "pytorch_lightning.loggers.WandbLogger",
                "params": {"name": "n", "save_dir": "x", "offline": True, "version": "abc"},
            },
            [(WANDB, {"name": "n", "offline": True, "id": "abc"})],
        ),
        ({"target": "pytorch_lightning.loggers.CSVLogger", "params": {"save_dir": "x"}}, []),
        ({"target": "mine.Logger", "params": {"a": 1}}, [("mine.Logger", {"a": 1})]),
    ],
)
def test_loggers_in_our_terms(given: Any, expected: list[tuple[str, dict[str, Any]]]) -> None:
    found = our_lightning({"logger": given})["logger"]
    assert [(config["target"], config.get("params", {})) for config in found] == expected


@pytest.mark.parametrize(
    ("given", "facts"),
    [
        ("tensorbord", "'tensorbord'.*did you mean 'tensorboard'"),
        (7, "got 7, expected tensorboard, wandb"),
        ({"target": "tensorboard", "params": {"flush_sec": 5}}, "'flush_sec'.*'flush_secs'"),
        ({"target": "os.system", "params": {"command": "true"}}, "'os.system' is not trusted"),
        ({"target": "torch.nn.Identity"}, "torch.nn.Identity, expected a logger"),
        ({"target": "pytorch_lightning.loggers.MLFlowLogger"}, "MLFlowLogger needs .*mlflow"),
        ({"target": "wandb", "params": {"offline": True, "log_model": True}}, "offline and log_model"),
    ],
)
def test_what_is_no_logger_is_refused_in_one_line(given: Any, facts: str, tmp_path: Path) -> None:
    if "log_model" in facts:
        pytest.importorskip("wandb")
    config = config_of(tmp_path, logger=given)
    with pytest.raises(ValueError, match=facts) as refused:
        build_loggers(read_run_config([config]).logger, tmp_path / "run")
    assert "\n" not in str(refused.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=rf"{name} is not installed: pip install .*\[loggers\]'"):
        build_loggers(our_lightning({"logger": name})["logger"], tmp_path)


def test_a_wrong_logger_leaves_the_metrics_of_a_resumed_run(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step\n")
    with pytest.raises(ValueError, match="not trusted"):
        build_loggers([{"target": "mine.Logger"}], tmp_path)
    assert (tmp_path / "metrics.csv").is_file()
    assert isinstance(build_loggers([{"target": BOARD}], tmp_path)[1], TensorBoard)
    assert (tmp_path / "metrics-0.csv").is_file()
