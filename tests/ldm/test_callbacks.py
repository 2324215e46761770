"""What a run leaves beside its weights."""

import logging
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pictures import write_pictures
from PIL import Image
from pytorch_lightning.loggers import CSVLogger
from small_models import IDENTITY, unet

from ldm.callbacks import ImageLogger, Timings, memory_gb
from ldm.data import DataModule
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.pictures import image_grid, save_png


def test_image_grid_puts_images_in_rows_and_entries_in_columns() -> None:
    inputs = torch.stack([torch.full((3, 2, 3), value) for value in (-1.0, 0.0, 0.5)])
    samples = torch.stack([torch.full((2, 3, 2, 3), value) for value in (-0.5, 9.0)])  # two a row, two rows
    grid = image_grid({"inputs": inputs, "samples": samples}, gap=1)
    assert grid.dtype == torch.uint8
    assert grid.shape == (3, 2 * 3 + 1, 3 * 4 + 1)
    expected = np.full((7, 13), 255)
    expected[1:3, 1:4], expected[1:3, 5:8], expected[1:3, 9:12] = 0, 64, 64
    expected[4:6, 1:4] = 128  # 127.5, to even; the samples of this row are clamped to white
    assert np.array_equal(grid[0].numpy(), expected)
    assert torch.equal(grid[0], grid[2])


def test_a_grid_of_several_numbers_of_channels_has_colours() -> None:
    grey, colour = torch.full((1, 1, 2, 2), 0.5), torch.tensor([1.0, -1.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    many = torch.tensor([0.0, 1.0]).repeat(2).view(1, 4, 1, 1).expand(1, 4, 2, 2)
    grid = image_grid({"grey": grey, "colour": colour, "many": many}, gap=1)
    assert grid[:, 1, [1, 4, 7]].tolist() == [[191, 255, 191], [191, 0, 191], [191, 128, 191]]
    assert image_grid({"grey": grey, "many": many}, gap=1).shape == (1, 4, 7)


def test_save_png_is_lossless_and_complete(tmp_path: Path) -> None:
    image = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    save_png(image, tmp_path / "images" / "a.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "images" / "a.png")), image.permute(1, 2, 0).numpy())
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["a.png"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_freed_memory_is_kept_in_training() -> None:
    code = """
import resource, torch
from ldm.callbacks import KeptMemory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
before = faults()
KeptMemory().on_fit_start()
faults()
print(before, faults())
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)  # noqa: S603
    before, after = map(int, done.stdout.split())
    assert after < before / 10


def test_memory_is_that_of_a_process_with_torch() -> None:
    before = memory_gb(torch.device("cpu"))
    block = torch.ones(50_000_000)  # 0.2e9 bytes
    assert 0.1 < before <= memory_gb(torch.device("cpu")) < 100
    assert block.sum() == 50_000_000


def test_a_run_logs_timings_and_writes_grids_of_spread_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="ldm")
    timings = Timings(every_n_steps=2)
    pictures = write_pictures(tmp_path / "pictures", 9)
    data = DataModule(2, train=pictures, validation=pictures)
    trainer = pl.Trainer(
        max_steps=4,
        accelerator="cpu",
        logger=CSVLogger(tmp_path / "run", name="", version=""),
        callbacks=[ImageLogger(every_n_steps=3, max_images=3), timings],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(LatentDiffusion(IDENTITY, unet_config=unet(), timesteps=20, learning_rate=3e-4), datamodule=data)
    logged = {key: value.item() for key, value in trainer.callback_metrics.items()}
    assert logged["time/images_per_second"] * logged["time/step_seconds"] == pytest.approx(2.0, rel=1e-4)
    assert logged["learning_rate"] == pytest.approx(3e-4) and 0.1 < logged["time/memory_gb"] < 100
    said = [message for message in caplog.messages if message.startswith("step ")]
    assert len(said) == 2 and re.search(r", 0:00:\d\d left$", said[0]) and "left" not in said[1]
    timings._begun = time.perf_counter() - 30, 1  # three steps of ten seconds
    trainer.fit_loop.epoch_loop.max_steps = 1004
    assert timings.time_left(trainer) == "2:46:40"
    trainer.callbacks.append(pl.callbacks.Timer({"minutes": 20}))  # max_time, which ends before
    assert timings.time_left(trainer) == "0:20:00"
    folder = tmp_path / "run" / "images"
    assert sorted(path.name for path in folder.iterdir()) == ["0000003.png", "0000004.png"]
    grid = torch.from_numpy(np.array(Image.open(folder / "0000004.png"))).permute(2, 0, 1)
    assert grid.shape == (3, 3 * 10 + 2, 3 * 10 + 2)  # 3 images by inputs, reconstructions, samples
    images = torch.stack([data.datasets["validation"][i]["image"] for i in (0, 4, 8)])
    columns = image_grid({"inputs": images, "reconstructions": images})
    assert torch.equal(grid[:, :, :22], columns)


@pytest.mark.parametrize("wrong", [{"every_n_steps": 0}, {"max_images": 0}])
def test_a_grid_every_no_steps_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="every_n_steps=0|max_images=0"):
        ImageLogger(**wrong)
