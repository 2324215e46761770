"""The autoregressive model on a whole tiny system: codes, training, resuming, sampling, the record."""

from __future__ import annotations

import csv
import math
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawing import draw
from PIL import Image
from toy import ROOT, rarm_config, rdm_config, ship

import main
from ldm.checkpoint import read_weights
from ldm.config import write_config
from ldm.run import export_run
from ldm.util import instantiate_from_config
from rdm.data.codes import CodeTable
from rdm.loading import Loaded, find_checkpoint, load
from rdm.sampling import ways
from rdm.sampling.pipeline import Pipeline
from rdm.sampling.record import make_again, read_record, save


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("system")
    network = {"dropout": 0.1}
    config = rarm_config(folder, learning_rate=3e-3, monitor="val/bits_per_token")
    config["model"]["params"]["transformer_config"]["params"] |= network
    config["lightning"] = {
        "trainer": {
            "max_steps": 6,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "log_every_n_steps": 1,
            "val_check_interval": 3,
            "check_val_every_n_epoch": None,
        },
        "callbacks": {
            "images": {"target": "rdm.callbacks.RetrievalImageLogger", "params": {"every_n_steps": 6, "max_images": 2}}
        },
        "checkpoint": {"every_n_train_steps": 3},
    }
    write_config(folder / "rarm.yaml", config)
    return {"folder": folder, "config": config, "file": str(folder / "rarm.yaml")}


@pytest.fixture(scope="module")
def run(system: dict[str, Any]) -> Path:
    """A run that was stopped after three of its six steps, and gone on with."""
    run = system["folder"] / "logs" / "parts"
    main.train(main.parse(["-b", system["file"], "-t", "lightning.trainer.max_steps=3", "-p", str(run)]))
    main.train(main.parse(["-t", "--resume", str(run), "lightning.trainer.max_steps=6"]))
    return run


@pytest.fixture(scope="module")
def loaded(system: dict[str, Any]) -> Pipeline:
    return Pipeline.load(str(ship(system["folder"] / "model", system["config"])))


def column(run: Path, name: str) -> list[float]:
    rows = [row for file in sorted(run.glob("metrics*.csv")) for row in csv.DictReader(file.open())]
    return [float(row[name]) for row in rows if row.get(name)]


def test_training_makes_codes_and_goes_on_as_if_it_had_not_been_stopped(system: dict[str, Any], run: Path) -> None:
    whole = system["folder"] / "logs" / "whole"
    main.train(main.parse(["-b", system["file"], "-t", "-p", str(whole)]))
    expected, got = (read_weights(each / "checkpoints" / "last.ckpt") for each in (whole, run))
    assert [name for name, value in expected.items() if not torch.equal(got[name], value)] == []
    table = CodeTable.open(system["folder"] / "codes" / "train")
    assert table.values.shape == (40, 64) and table.values.dtype == np.uint16 and table.values.max() < 16
    images = instantiate_from_config(system["config"]["data"]["params"]["train"])
    model = instantiate_from_config(system["config"]["model"])
    made = model.to_codes(torch.stack([images[i]["image"] for i in (0, 39)]))
    assert made.tolist() == table.values[[0, 39]].tolist()
    bits, nats = column(whole, "val/bits_per_token"), column(whole, "val/loss")
    assert bits == pytest.approx([loss / math.log(2) for loss in nats], rel=1e-4) and len(bits) == 2
    assert bits[1] < bits[0] < 6  # 16 codes: 4 bits would be a guess
    assert (whole / "images" / "0000006.png").is_file()
    best = read_weights(whole / "checkpoints" / "best.ckpt")  # by the newest validation, not by the one before it
    assert [name for name, value in expected.items() if not torch.equal(best[name], value)] == []


def test_a_run_is_exported_and_found_by_what_it_is(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = export_run(run, tmp_path / "models/rarm/emoji")
    made = load(str(file.parent))
    assert made.latent_shape_of() == (3, 8, 8) and made.model.sos_token.item() == 17
    raw = read_weights(run / "checkpoints" / "last.ckpt")["transformer.proj_out.weight"]
    torch.testing.assert_close(made.model.transformer.proj_out.weight, raw, rtol=1e-3, atol=1e-5)
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint("rarm") == Path("models/rarm/emoji/model.safetensors")
    shutil.copytree(run, tmp_path / "logs" / "newer")
    assert find_checkpoint("rarm") == Path("logs/newer/checkpoints/last.ckpt")
    assert find_checkpoint() == ROOT / "models/rdm/emoji/model.safetensors"  # the shipped one, from elsewhere
    with pytest.raises(FileNotFoundError, match=f"no checkpoint at none in {tmp_path}; .*configs/rdm.yaml"):
        find_checkpoint("none")


@pytest.mark.parametrize("tokens", ["neighbours", "both", "text"])
def test_an_image_is_made_again_from_its_record(loaded: Loaded, tmp_path: Path, tokens: str) -> None:
    options: dict[str, Any] = {"temperature": 0.8, "top_k": 9, "top_p": 0.9, "scale": 2.0, "batch_size": 3}
    options["text_scale"] = 1.5 if tokens == "both" else None
    samples = draw(ways.texts, loaded, ["pirate flag", "white flag"], k=2, seed=3, tokens=tokens, **options)
    grid = save(samples, loaded, tmp_path, "flags")
    assert grid.is_file() and (samples.images[0] - samples.images[1]).abs().max() > 0.05
    record = read_record(tmp_path / "flags-001.png")
    assert record["seed"] == 4 and record["settings"]["top_p"] == 0.9 and "steps" not in record["settings"]
    save(*make_again(record), tmp_path, "again")
    assert (tmp_path / "again-000.png").read_bytes() == (tmp_path / "flags-001.png").read_bytes()


@pytest.mark.parametrize("size", [None, 2])
def test_an_image_depends_on_its_seed_and_query_alone(loaded: Loaded, size: int | None) -> None:
    """To the last bit: not on how many images are made with it, nor on the settings of the other kind of model."""
    options: dict[str, Any] = {"k": 2, "scale": 2.0, "batch_size": size}
    together = draw(ways.texts, loaded, ["pirate flag", "white flag", "rainbow flag"], seed=5, **options)
    alone = draw(ways.texts, loaded, ["rainbow flag"], seed=7, steps=None, sampler=None, eta=None, **options)
    assert torch.equal(together.images[2:], alone.images)


def test_the_other_ways_to_ask(loaded: Loaded) -> None:
    of_class = draw(ways.classes, loaded, ["flags"] * 2, k=2, pool=5, seed=0, scale=1.0)
    popular = draw(ways.popular, loaded, 2, k=2, top_m=1.0, weighted=True, seed=0, scale=1.0)
    assert of_class.images.shape == popular.images.shape == (2, 3, 16, 16)
    assert loaded("white flag", neighbours=2, temperature=0.0)[0].size == (16, 16)


def test_options_of_the_other_kind_are_refused(loaded: Loaded, tmp_path: Path) -> None:
    for options, message in (
        ({"steps": 20}, "steps=20.*diffusion model.*autoregressive model"),
        ({"weaker": "models/rdm/emoji"}, "weaker=models/rdm/emoji.*diffusion model"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": 0.0, "best_of": 2}, "best_of=2 with temperature=0.*same image"),
        ({"top_k": 1, "best_of": 3}, "best_of=3 with top_k=1.*same image"),
    ):
        with pytest.raises(ValueError, match=message):
            draw(ways.texts, loaded, ["white flag"], k=2, seed=0, **options)
    diffusion = load(str(ship(tmp_path / "model", rdm_config(tmp_path))))
    for options, message in (
        ({"top_p": 0.9}, "top_p=0.9.*autoregressive model.*diffusion model"),
        ({"weaker": str(loaded.path)}, "is an autoregressive model, expected a diffusion model"),
    ):
        with pytest.raises(ValueError, match=message):
            draw(ways.texts, diffusion, ["white flag"], k=2, seed=0, **options)
    made = draw(ways.texts, diffusion, ["flag"], k=2, seed=0, steps=1, temperature=1.0)
    assert "temperature" not in made.settings.record(diffusion.model.kind)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("txt2img", ["--prompt", "white flag", "--temperature", "0.9", "--top_k", "9"]),
        ("class2img", ["--class", "flags", "--pool", "5", "--top_p", "0.9"]),
        ("sample", ["--top_m", "1.0", "--scale", "1"]),
    ],
)
def test_scripts_find_out_what_a_checkpoint_holds(
    script: str, words: list[str], loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    common = ["--ckpt", str(loaded.path.parent), "--n_samples", "2", "--knn", "2", "--outdir", str(tmp_path)]
    monkeypatch.setattr("sys.argv", [script, *words, *common])
    runpy.run_path(str(ROOT / "scripts" / f"{script}.py"), run_name="__main__")
    assert read_record(tmp_path / f"{script}-001.png")["seed"] == 1
    assert Image.open(tmp_path / f"{script}-grid.png").size == (2 + 3 * 18, 2 + 2 * 18)
    monkeypatch.setattr("sys.argv", [script, *words, *common, "--sampler", "plms"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(ROOT / "scripts" / f"{script}.py"), run_name="__main__")
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert caught.value.code == 2 and complaint.startswith("error: got sampler=plms, which is an option of a diffusion")


def test_without_neighbours_images_do_not_depend_on_them(system: dict[str, Any], tmp_path: Path) -> None:
    config = {**system["config"], "model": {**system["config"]["model"]}}
    config["model"]["params"] = {**config["model"]["params"], "use_neighbours": False}
    plain = load(str(ship(tmp_path / "model", config)))
    images = [draw(ways.texts, plain, [text], k=2, seed=1, scale=2.0).images for text in ("pirate flag", "white flag")]
    assert torch.equal(*images)
