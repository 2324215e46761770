"""Adapting a model to other pictures: the pictures of the demo, and the config of its run."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from toy import FLAGS, ROOT, references_config, ship

from ldm.checkpoint import read_weights
from ldm.config import write_config
from ldm.data import ParquetImages
from rdm.sampling.adapt import adapting_config, pixel_art
from rdm.sampling.pipeline import Pipeline

DRAWINGS = ROOT / "data" / "emoji" / "noto.parquet"


def test_pixel_art_has_large_pixels_of_few_colours_and_the_drawings_names(tmp_path: Path) -> None:
    table = pq.read_table(pixel_art(DRAWINGS, tmp_path / "new" / "art.parquet", 7))
    source = pq.read_table(DRAWINGS)
    assert len(table) == 7 and set(table["style"].to_pylist()) == {"pixel art"}
    assert table["name"][0] == source["name"][0] and table["name"][6] == source["name"][len(source) - 1]
    assert table.schema.field("image").type == source.schema.field("image").type
    for before, after in ((source["image"][0], table["image"][0]), (source["image"][-1], table["image"][6])):
        drawing = Image.open(io.BytesIO(before.as_py()["bytes"])).convert("RGB").resize((16, 16), Image.Resampling.BOX)
        art = np.asarray(Image.open(io.BytesIO(after.as_py()["bytes"])))
        large = art[::8, ::8]
        assert art.shape == (128, 128, 3) and np.array_equal(large.repeat(8, 0).repeat(8, 1), art)
        assert 2 <= len(np.unique(large.reshape(-1, 3), axis=0)) <= 12
        assert np.abs(large.astype(float) - np.asarray(drawing).astype(float)).mean() < 15
    images = ParquetImages(str(tmp_path / "new"), size=16)
    assert len(images) == 7 and images[0]["image"].shape == (3, 16, 16)


def test_a_run_adapts_the_model_with_all_it_has_to_a_folder_or_to_parquet_files(tmp_path: Path) -> None:
    config = references_config(tmp_path)
    config["lightning"] = {"trainer": {"max_steps": 3, "accelerator": "cpu"}}
    shipped = ship(tmp_path / "model", config)
    pictures = pixel_art(DRAWINGS, tmp_path / "pictures" / "art.parquet", 9)
    made = adapting_config(str(shipped), str(pictures), tmp_path / "others", 0.5)
    params: dict[str, Any] = made["data"]["params"]
    assert params["caption_share"] == 0.5 and params["train"]["params"]["size"] == FLAGS["size"]
    assert made["lightning"]["trainer"]["max_time"] == {"seconds": 30}
    made["lightning"]["trainer"] |= {"max_steps": 2, "max_time": None}
    params |= {"stored_k": 3, "near_duplicate": 2.0}
    write_config(tmp_path / "config.yaml", made)
    words = ["--base", str(tmp_path / "config.yaml"), "-t", "-p", str(tmp_path / "run")]
    done = subprocess.run(  # noqa: S603
        [sys.executable, str(ROOT / "main.py"), *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    before, after = (
        read_weights(path) for path in (shipped / "model.safetensors", tmp_path / "run/checkpoints/last.ckpt")
    )
    name = "model.diffusion_model.input_blocks.0.0.weight"
    change = (after[name] - before[name]).abs().max()
    assert 0 < change < 0.01  # two steps from the model's own weights
    (image,) = Pipeline.load(str(tmp_path / "run"), str(tmp_path / "others"))(["flag"], steps=2)
    assert image.size == (16, 16)
    folder = tmp_path / "folder"
    folder.mkdir()
    Image.new("RGB", (20, 20), "red").save(folder / "a.png")
    of_folder = adapting_config(str(shipped), str(folder), tmp_path / "others", 1)["data"]["params"]
    assert of_folder["train"]["target"] == "ldm.data.ImageFolder" and of_folder["caption_share"] == 0.0


def test_a_model_that_is_not_there_or_no_whole_run_is_named(tmp_path: Path) -> None:
    shipped = ship(tmp_path / "model", references_config(tmp_path))  # without `lightning`
    with pytest.raises(ValueError, match=f"the config of {shipped}.* has no 'data' or no 'lightning'"):
        adapting_config(str(shipped), "pictures", tmp_path / "d", 1)
    with pytest.raises(FileNotFoundError, match=f"no checkpoint at {tmp_path / 'none'}"):
        adapting_config(str(tmp_path / "none"), "pictures", tmp_path / "d", 1)
