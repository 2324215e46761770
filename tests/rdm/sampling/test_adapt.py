"""Adapting a model to pictures of one's own: their captions, the config, the forecast, the run, and its picture."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from toy import FLAGS, ROOT, clip_config, references_config, ship

from ldm.config import read_config, write_config
from ldm.data import ParquetImages
from ldm.util import instantiate_from_config
from rdm.sampling.adapt import Adaptation, adaptation
from rdm.sampling.before_after import Panel, own_queries, page, sampled
from rdm.sampling.calibrate import Forecast, calibrate
from rdm.sampling.pixel_art import pixel_art

DRAWINGS = ROOT / "data" / "emoji" / "noto.parquet"
NAMES = ("red_guitar-2", "blue house", "IMG_0042", "green-tree", "cat_7", "a dog", "bus", "0001", "boat", "sun")


@pytest.fixture
def base(tmp_path: Path) -> str:
    """A config like ``configs/own.yaml`` of a tiny model."""
    config = references_config(tmp_path, timesteps=50)
    shipped = ship(tmp_path / "model", config)
    read = {"root": "pictures", "size": 16, "captions": ["txt", "csv", "name", "folder"]}
    config["model"]["params"] |= {"ckpt_path": str(shipped / "model.safetensors")}
    data = config["data"]["params"]
    data.pop("validation")
    data |= {"train": {"target": "ldm.data.ImageFolder", "params": read}, "caption_share": 0.5, "draw_from": 3}
    config["lightning"] = {"trainer": {"max_steps": 100_000, "max_time": {"minutes": 7}, "accelerator": "cpu"}}
    write_config(tmp_path / "base.yaml", config)
    return str(tmp_path / "base.yaml")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Pictures of several sizes and modes."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    modes = ("RGB", "L", "RGBA", "P", "LA")
    rng = np.random.default_rng(0)
    for number, name in enumerate(NAMES):
        pixels = rng.integers(0, 256, (16 + 3 * number, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert("RGBA").convert(modes[number % 5]).save(folder / f"{name}.png")
    return folder


def params_of(adapted: Adaptation) -> dict[str, Any]:
    params: dict[str, Any] = adapted.config["data"]["params"]
    return params


def test_the_config_is_filled_in_for_the_pictures(tmp_path: Path, base: str, pictures: Path) -> None:
    adapted = adaptation(str(pictures), tmp_path / "out", base=base)
    said, params = str(adapted.pictures), params_of(adapted)
    assert said.startswith(f"10 pictures in {pictures}; 8 have a caption (name 8)") and "'sun' (sun.png)" in said
    assert params["database"]["path"] == str(tmp_path / "out/database")
    assert params["train"]["params"] == {**params["database"]["source"]["params"], "keep": True}
    assert (params["caption_share"], params["batch_size"], params["stored_k"], params["draw_from"]) == (0.5, 4, 3, 3)
    assert read_config([tmp_path / "out/config.yaml"]) == adapted.config
    again = adaptation(str(pictures), tmp_path / "out", base=base, overrides=["lightning.trainer.max_time.minutes=3"])
    assert params_of(again) == params
    with pytest.raises(ValueError, match=f"{tmp_path / 'out'} was begun with data.params.*captions=.*txt.*name"):
        adaptation(str(pictures), tmp_path / "out", base=base, captions=["name"])
    without = adaptation(str(pictures), tmp_path / "none", base=base, captions=[])
    assert params_of(without)["caption_share"] == 0.0 and "without captions" in str(without.pictures)


def test_what_cannot_be_adapted_to_is_named_in_one_line(tmp_path: Path, base: str, pictures: Path) -> None:
    empty, few = tmp_path / "empty", tmp_path / "few"
    for folder in (empty, few):
        folder.mkdir()
    Image.new("RGB", (9, 9)).save(few / "a.png")
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (tmp_path / "none", {}, f"no image folder at '{tmp_path / 'none'}'"),
        (empty, {}, f"no image below '{empty}'"),
        (few, {}, f"pictures in {few}: got 1, expected at least 3"),
        (pictures, {"captions": ["names"]}, "source 'names'; did you mean 'name'"),
        (pictures, {"caption_table": "none.csv"}, "no table at none.csv"),
        (DRAWINGS, {"captions": ["name"]}, "noto.parquet, which has a column of its own"),
        (pictures, {"embedder": str(tmp_path / "no clip")}, "no clip"),
    ]
    for place, options, expected in wrong:
        with pytest.raises((ValueError, OSError), match=expected) as error:
            adaptation(str(place), tmp_path / "out", base=base, **options)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_another_clip_and_another_first_stage_take_their_places(tmp_path: Path, base: str, pictures: Path) -> None:
    wider = clip_config()
    wider["params"]["model_cfg"]["embed_dim"] = 12
    instantiate_from_config(wider).export(tmp_path / "wider", ["flag"])
    adapted = adaptation(str(pictures), tmp_path / "out", base=base, embedder=str(tmp_path / "wider"))
    model = adapted.config["model"]["params"]
    assert model["unet_config"]["params"]["context_dim"] == 12 and model["conditioner"]["scale"] == 3.5
    assert model["ignore_keys"] and all(".attn2.to_" in name for name in model["ignore_keys"])
    assert adapted.before() is None and instantiate_from_config(adapted.config["model"]) is not None
    stage = str(tmp_path / "first_stage.safetensors")
    adapted = adaptation(str(pictures), tmp_path / "other", base=base, first_stage=stage)
    assert adapted.config["model"]["params"]["load_only_unet"] is True
    assert params_of(adapted)["references"]["first_stage"]["params"]["ckpt_path"] == stage


def test_the_forecast_is_measured_and_adds_up(tmp_path: Path, base: str, pictures: Path) -> None:
    measured = calibrate(adaptation(str(pictures), tmp_path / "out", base=base))
    seconds = (measured.reading, measured.embedding, measured.encoding, measured.step, measured.image)
    assert all(0 < each < 60 for each in seconds) and (measured.pictures, measured.batch) == (10, 4)
    assert measured.psnr < 25 and f"{measured.psnr:.1f} dB" in measured.advice()  # of an untrained first stage
    known = Forecast(pictures=300, batch=16, reading=0.1, embedding=0.05, encoding=0.1, step=0.5, image=1.5, psnr=26)
    assert known.preparing() == pytest.approx(180) and known.minutes(10, 48, 12) == pytest.approx(10 + 3 + 1.6)
    said = known.describe(10, 48, 12)
    assert "about 15 minutes: 3.0 to build" in said and "about 1200 steps, each picture 64 times" in said
    assert known.advice() == ""


def test_queries_are_captions_and_pictures_whose_neighbours_are_others(
    tmp_path: Path, base: str, pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (pictures / "broken_one.png").write_bytes(b"no picture")
    adapted = adaptation(str(pictures), tmp_path / "out", base=base)
    queries, shown = own_queries(adapted, 4)
    assert [query.label for query in queries] == ['"a dog"', '"sun"', "0001.png", "sun.png"]
    assert shown.shape == (4, 1, 3, 16, 16) and torch.equal(shown[1], shown[3])
    loaded = adapted.before()
    assert loaded is not None and len(loaded.retriever.database) == 10 and "broken_one.png" in caplog.text
    request = queries[3].ask(loaded, 2)
    names = loaded.retriever.database.column("image_id").to_pylist()
    assert request.retrieved.rows.shape == (2, 2) and "sun.png" not in [names[row] for row in request.retrieved.rows[0]]
    neighbours, samples = (panel.images for panel in sampled(loaded, queries, "after", 3))
    assert samples.shape == (4, 3, 3, 16, 16) and neighbours.shape == (4, 2, 3, 16, 16)
    first, second = queries[0].ask(loaded, 2).retrieved.rows
    assert np.array_equal(first, second) and not torch.equal(samples[0, 0], samples[0, 1])


def test_the_picture_has_labels_and_panels_beside_each_other() -> None:
    white, black = torch.ones(2, 1, 3, 16, 16), -torch.ones(2, 3, 1, 16, 16)
    drawn = np.asarray(page(["text: a dog", "sun.png"], [Panel("one", white), Panel("three of them", black)]))
    height = 2 + 2 * 18
    top, left = drawn.shape[0] - height, drawn.shape[1] - (2 + 3 * 18)
    assert drawn.shape[2] == 3 and top > 12 and (drawn[top + 2 : top + 18, left + 2 : left + 18] == 0).all()
    assert (drawn[top:, left - 28 : left] == 255).all()  # the white panel and the gap
    assert (drawn[top:, :60] < 128).any() and (drawn[:top, left:] < 128).any()  # labels and titles


def command(tmp_path: Path, base: str, pictures: Path, minutes: str) -> subprocess.Popen:
    """The command with an option behind the folder, and a setting behind the options."""
    words = [str(ROOT / "scripts/own.py"), str(pictures), "--config", base, "--outdir", str(tmp_path / "out")]
    words += ["--minutes", minutes, "data.params.num_workers=0"]
    return subprocess.Popen(
        [sys.executable, *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_the_command_can_be_stopped_and_goes_on_to_its_picture(tmp_path: Path, base: str, pictures: Path) -> None:
    process = command(tmp_path, base, pictures, "60")
    metrics = tmp_path / "out/run/metrics.csv"
    while process.poll() is None and not (metrics.is_file() and metrics.stat().st_size):
        time.sleep(0.2)
    assert (tmp_path / "out/own.png").is_file()  # before the training
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[0]
    assert process.returncode == 143 and "the same command goes on" in said, said[-2000:]
    assert read_config([tmp_path / "out/run/config.yaml"])["lightning"]["trainer"]["max_time"] == {"seconds": 3600}
    first = Image.open(tmp_path / "out/own.png").size
    stopped = read_step(tmp_path)
    process = command(tmp_path, base, pictures, "0.0001")  # which have passed; one further step is taken
    said = process.communicate()[0]
    assert process.returncode == 0 and said.rstrip().endswith(f"\n{tmp_path / 'out/own.png'}"), said[-2000:]
    assert f"10 pictures in {pictures}; 8 have a caption" in said and "expected: " in said
    assert Image.open(tmp_path / "out/own.png").size[0] > first[0] and stopped <= read_step(tmp_path) <= stopped + 2


def read_step(tmp_path: Path) -> int:
    return int(torch.load(tmp_path / "out/run/checkpoints/last.ckpt", weights_only=True)["global_step"])


def some_drawings(folder: Path, n: int) -> Path:
    pq.write_table(pq.read_table(DRAWINGS).slice(0, n), folder / "drawings.parquet")
    return folder / "drawings.parquet"


def test_pixel_art_has_large_pixels_of_few_colours_and_the_drawings_names(tmp_path: Path) -> None:
    table = pq.read_table(pixel_art(some_drawings(tmp_path, 7), tmp_path / "new" / "art.parquet"))
    source = pq.read_table(DRAWINGS).slice(0, 7)
    assert set(table["style"].to_pylist()) == {"pixel art"} and table["name"] == source["name"]
    assert table.schema.field("image").type == source.schema.field("image").type
    for before, after in ((source["image"][place], table["image"][place]) for place in (0, 6)):
        drawing = Image.open(io.BytesIO(before.as_py()["bytes"])).convert("RGB").resize((16, 16), Image.Resampling.BOX)
        art = np.asarray(Image.open(io.BytesIO(after.as_py()["bytes"])))
        large = art[::8, ::8]
        assert art.shape == (128, 128, 3) and np.array_equal(large.repeat(8, 0).repeat(8, 1), art)
        assert 2 <= len(np.unique(large.reshape(-1, 3), axis=0)) <= 12
        assert np.abs(large.astype(float) - np.asarray(drawing).astype(float)).mean() < 15
    images = ParquetImages(str(tmp_path / "new"), size=16)
    assert len(images) == 7 and images[0]["image"].shape == (3, 16, 16)


def test_parquet_files_have_captions_in_a_column(tmp_path: Path, base: str) -> None:
    art = pixel_art(some_drawings(tmp_path, 9), tmp_path / "pictures" / "art.parquet")
    adapted = adaptation(str(art), tmp_path / "out", base=base)
    assert "9 have a caption (column 9)" in str(adapted.pictures) and params_of(adapted)["caption_share"] == 0.5
    assert params_of(adapted)["train"]["params"]["size"] == FLAGS["size"]


def test_the_shipped_config_starts_from_the_shipped_model_and_differs_from_its_training_in_the_data() -> None:
    own, trained = (read_config([f"configs/{name}.yaml"])["model"]["params"] for name in ("own", "rdm"))
    assert own.pop("ckpt_path") == "models/rdm/emoji/model.safetensors" and own.pop("learning_rate") == 3e-4
    trained = {name: value for name, value in trained.items() if name not in ("learning_rate", "scheduler_config")}
    assert own == trained
