"""Pictures of [height, width]: data sets, databases, both kinds of models with references, sampling and editing."""

from __future__ import annotations

import argparse
import copy
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawing import draw
from pictures import QUIET, ProjectionEmbedder, write_pictures
from PIL import Image
from toy import FLAGS, ROOT, clip_config, rarm_config, rdm_config, references_config, ship

import main
from ldm.checkpoint import write_weights
from ldm.config import write_config
from ldm.data import HashSplit, ImageFolder, ParquetImages
from ldm.data.decode import centre_crop, decode_image
from ldm.models.first_stage import load_first_stage
from ldm.util import instantiate_from_config
from rdm.cli.sampling import argument
from rdm.data.references import ReferenceTable
from rdm.evaluate.first_stage import evaluation_data, reconstruction
from rdm.retrieval.builder.build import build_database
from rdm.retrieval.database.pictures import framed_pictures, pictures
from rdm.sampling import ways
from rdm.sampling.conditions import reference_latents
from rdm.sampling.edit import edit
from rdm.sampling.pipeline import Pipeline
from rdm.sampling.record import make_again, read_record, save

SIZE = [16, 32]
FAST = {"k": 2, "seed": 3, "steps": 3, "sampler": "ddim", "scale": 2.0}


def rectangular(config: Any, size: Any = SIZE) -> Any:
    """A config with pictures of this size."""
    if isinstance(config, dict):
        changed = {name: rectangular(value, size) for name, value in config.items()}
        return changed | ({"size": size} if "size" in changed else {})
    return [rectangular(each, size) for each in config] if isinstance(config, list) else copy.deepcopy(config)


def run_of(folder: Path, config: dict[str, Any]) -> Path:
    """A run of two steps, with its grids."""
    logger = {"target": "rdm.callbacks.RetrievalImageLogger", "params": {"every_n_steps": 2, "max_images": 2}}
    trainer = {"max_steps": 2, "accelerator": "cpu", "enable_progress_bar": False, "limit_val_batches": 1}
    config |= {"lightning": {"trainer": trainer, "callbacks": {"images": logger}}}
    write_config(folder / "config.yaml", config)
    main.train(main.parse(["-b", str(folder / "config.yaml"), "-t", "--no-test", "-p", str(folder / "run")]))
    return folder / "run"


def test_the_largest_centre_of_the_ratio_is_scaled() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    for size, box in (((10, 30), (0, 10, 60, 30)), ((20, 10), (20, 0, 40, 40)), ((16, 16), (10, 0, 50, 40))):
        expected = picture.resize(size[::-1], Image.Resampling.BICUBIC, box=box)
        assert np.array_equal(np.asarray(centre_crop(picture, size)), np.asarray(expected))
    assert centre_crop(picture, [40, 60]) is picture
    size_of = argument("size")
    assert (size_of("64"), size_of("64x96")) == (64, [64, 96])
    for text in ("64x", "1x2x3", "0", "x"):
        with pytest.raises(argparse.ArgumentTypeError, match="HEIGHTxWIDTH"):
            size_of(text)


def test_data_sets_and_databases_have_the_size(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "pictures", 5)
    source["params"]["size"] = [4, 8]
    images = ImageFolder(**source["params"])
    assert images[0]["image"].shape == (3, 4, 8)
    assert torch.equal(images[0]["image"], decode_image(images.read(0), (4, 8)))
    assert ImageFolder(str(tmp_path / "pictures"), [8, 8]).size == 8
    flags = ParquetImages(**{**FLAGS, "size": SIZE})
    assert flags[0]["image"].shape == (3, *SIZE)
    assert HashSplit({"target": "ldm.data.ParquetImages", "params": {**FLAGS, "size": SIZE}}, False).size == SIZE
    database = build_database(tmp_path / "db", source, ProjectionEmbedder(), **QUIET)
    (patch,) = database.patches([3])
    assert patch.shape == (4, 8, 3)
    rows = np.array([[3, 1]])
    shown = pictures(database, rows, (4, 8))
    assert torch.equal(((shown[0, 0] + 1) * 127.5).round().permute(1, 2, 0).to(torch.uint8), torch.from_numpy(patch))
    framed = framed_pictures(database, rows, 8, 8)
    assert (
        torch.equal(framed[..., 2:6, :], shown) and (framed[..., :2, :] == 1).all() and (framed[..., 6:, :] == 1).all()
    )


def test_a_diffusion_model_with_references_is_trained_and_sampled(tmp_path: Path) -> None:
    run = run_of(tmp_path, rectangular(references_config(tmp_path)))
    loaded = Pipeline.load(str(run))
    assert loaded.data.image_size == (16, 32) and loaded.latent_shape_of() == (3, 8, 16)
    database = loaded.retriever.database
    table = ReferenceTable.open(database.path / "references", database)
    assert table.card["size"] == SIZE and table.values.shape[1:] == (3, 8, 16)
    rows = table.rows[:2]
    expected = reference_latents(loaded, rows[None], 16, 32)[0] / loaded.model.scale_factor
    torch.testing.assert_close(table.of_rows(rows).float(), expected, atol=2e-3, rtol=1e-3)
    samples = draw(ways.texts, loaded, ["white flag"], **FAST)
    assert samples.images.shape == (1, 3, *SIZE)
    grid = save(samples, loaded, tmp_path, "text")
    assert Image.open(grid).size == (2 + 3 * 34, 2 + 18)
    assert Image.open(run / "images/0000002.png").size == (2 + 5 * 34, 2 + 2 * 18)
    again, with_ = make_again(read_record(tmp_path / "text-000.png"))
    save(again, with_, tmp_path, "again")
    assert (tmp_path / "again-000.png").read_bytes() == (tmp_path / "text-000.png").read_bytes()
    edited = draw(edit, loaded, tmp_path / "text-000.png", strength=0.5, size=[9, 20], prompt="flag", **FAST)
    assert edited.images.shape == (1, 3, 9, 20)
    save(edited, loaded, tmp_path, "edit")
    again, with_ = make_again(read_record(tmp_path / "edit-000.png"))
    assert torch.equal(again.images, edited.images)
    (picture,) = loaded.edit(tmp_path / "text-000.png", "flag", strength=0.5, neighbours=2, steps=2)
    assert picture.size == (32, 16)
    assert draw(ways.image, loaded, tmp_path / "text-000.png", 1, height=16, **FAST).images.shape == (1, 3, 16, 32)


def test_an_autoregressive_model_is_trained_and_sampled(tmp_path: Path) -> None:
    config = rectangular(rarm_config(tmp_path))
    config["model"]["params"]["transformer_config"]["params"]["sequence_length"] = 128
    loaded = Pipeline.load(str(run_of(tmp_path, config)))
    assert loaded.latent_shape_of() == (3, 8, 16)
    assert draw(ways.texts, loaded, ["white flag"], k=2).images.shape == (1, 3, *SIZE)


def test_a_grey_model_is_sampled_and_edits(tmp_path: Path) -> None:
    """A system whose pictures have one channel, while CLIP and its database see three."""
    config = references_config(tmp_path)
    stage = config["model"]["params"]["first_stage_config"]
    stage["params"] = {**stage["params"], "ckpt_path": None}
    stage["params"]["ddconfig"] = stage["params"]["ddconfig"] | {"in_channels": 1, "out_ch": 1}
    write_weights(tmp_path / "grey.safetensors", instantiate_from_config(stage).state_dict())
    stage["params"]["ckpt_path"] = str(tmp_path / "grey.safetensors")
    for name in ("train", "validation"):
        params = {**FLAGS, "channels": 1}
        config["data"]["params"][name] = {"target": "ldm.data.ParquetImages", "params": params}
    run = run_of(tmp_path, config)
    loaded = Pipeline.load(str(run))
    samples = draw(ways.texts, loaded, ["white flag"], **FAST)
    assert samples.images.shape == (1, 1, 16, 16)
    options = {"data": None, "split": None, "size": None, "n": 4, "by": None, "perceptual": str(tmp_path / "clip")}
    options |= {"features": str(tmp_path / "clip"), "tile": None, "batch_size": 2, "num_workers": 0, "rows": 2}
    stage = load_first_stage(run)
    report = reconstruction(stage, {**options, "outdir": str(tmp_path / "reconstruction")})
    assert report["figures"]["psnr"] > 0 and Image.open(tmp_path / "reconstruction/reconstruction.png").mode == "L"
    assert evaluation_data(stage, "some", None, 16)["params"]["channels"] == 1
    save(samples, loaded, tmp_path, "text")
    assert Image.open(tmp_path / "text-000.png").mode == "L" and Image.open(tmp_path / "text-grid.png").mode == "RGB"
    colour = np.random.default_rng(0).integers(0, 256, (15, 16, 3), dtype=np.uint8)
    Image.fromarray(colour).save(tmp_path / "colour.png")
    mask = np.zeros((15, 16), dtype=np.uint8)
    mask[:, 8:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    edited = draw(edit, loaded, tmp_path / "colour.png", mask=tmp_path / "mask.png", repeats=1, **FAST)
    save(edited, loaded, tmp_path, "edit")
    values = np.linspace(-100, 300, 15 * 16).reshape(15, 16).astype(np.float32)
    Image.fromarray(values).save(tmp_path / "deep.tif")
    for attempt in (
        lambda: draw(edit, loaded, tmp_path / "deep.tif", strength=0.0, **FAST),
        lambda: draw(ways.image, loaded, tmp_path / "deep.tif", 1, **FAST),
    ):
        with pytest.raises(ValueError, match=r"deep\.tif: a picture of .* values from -100 to 300"):
            attempt()
    loaded.data.dataset_configs["train"]["params"]["value_range"] = [-100, 300]
    deep = draw(edit, loaded, tmp_path / "deep.tif", strength=0.0, **FAST)
    assert float((deep.request.canvas.picture[0, 0] - torch.from_numpy(values / 200 - 0.5)).abs().max()) < 0.005
    save(deep, loaded, tmp_path, "deep")
    assert torch.equal(make_again(read_record(tmp_path / "deep-000.png"))[0].images, deep.images)
    draw(ways.image, loaded, tmp_path / "deep.tif", 1, **FAST)
    made, grey = (np.asarray(Image.open(tmp_path / "edit-000.png")), np.asarray(Image.fromarray(colour).convert("L")))
    assert np.abs(made[:, :8].astype(int) - grey[:, :8]).max() <= 1 and made.shape == (15, 16)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"channels": 1}, "got pictures with 1 channels, expected 3"),
        ({"size": [16, 8]}, "of 16 x 8 .*expected 16 x 16"),
    ],
)
def test_a_clip_is_trained_on_what_its_tower_reads(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    images = {"target": "ldm.data.ParquetImages", "params": {**FLAGS, **given}}
    data = {"target": "ldm.data.DataModule", "params": {"batch_size": 4, "train": images, "validation": images}}
    with pytest.raises(ValueError, match=message):
        run_of(tmp_path, {"model": clip_config(), "data": data})


def test_the_command_line_takes_height_and_width(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(script: str, *words: str) -> str:
        monkeypatch.setattr(sys, "argv", [script, *words])
        runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")
        return capsys.readouterr().out

    folder = tmp_path / "toy"
    path = str(ship(folder / "model", rectangular(rdm_config(folder))))
    source = write_pictures(tmp_path / "pictures", 5)["params"]["root"]
    words = ("--source", source, "--size", "4x8", "--output", str(tmp_path / "db"), "--embedder", str(folder / "clip"))
    assert "5 rows" in run("build_database.py", *words)
    assert '"size": [\n' in (tmp_path / "db/database.json").read_text()
    out = ("--outdir", str(tmp_path / "out"))
    run("txt2img.py", "--ckpt", path, "--prompt", "white flag", "--steps", "2", "--n_samples", "1", *out)
    assert Image.open(tmp_path / "out/txt2img-000.png").size == (32, 16)
    words = ("--ckpt", path, "--reference", source, "--n", "4", "--steps", "2", "--metrics", "frechet_distance")
    words += ("--features", str(folder / "clip"), "--cache", str(tmp_path / "cache"), *out)
    assert "frechet_distance" in run("evaluate.py", "samples", *words)
    assert '"size": [' in (tmp_path / "out/results.json").read_text()
