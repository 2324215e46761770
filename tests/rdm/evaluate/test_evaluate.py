"""Moments and the Frechet distance against closed forms, and the reconstruction report of the command line."""

from __future__ import annotations

import copy
import json
import runpy
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures import write_clip, write_pictures
from PIL import Image
from small_models import KL, VQ, randomise
from torchvision.models import get_model
from toy import STYLES

from ldm.checkpoint import write_weights
from ldm.config import write_config
from ldm.files import file_hash
from ldm.metrics import psnr
from ldm.models.first_stage import load_first_stage
from ldm.util import instantiate_from_config
from rdm.evaluate import Moments, Reconstruction, evaluation_data, frechet_distance, perceptual_distance

ROOT = Path(__file__).parents[3]


def test_moments_of_batches_are_those_of_the_whole() -> None:
    x = torch.randn(37, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1e4
    moments = Moments()
    for part in x.split(8):
        moments.add(part)
    assert moments.count == 37 and moments.mean.dtype == torch.float64
    assert torch.allclose(moments.mean, x.double().mean(0)) and torch.allclose(moments.covariance, x.double().T.cov())


def test_frechet_distance_of_known_distributions() -> None:
    def normal(mean: list[float], variances: list[float]) -> Moments:
        moments = Moments()
        moments.count, moments.mean = 2, torch.tensor(mean).double()
        moments.scatter = torch.tensor(variances).double().diag()
        return moments

    far = frechet_distance(normal([0, 0], [1, 4]), normal([3, 4], [9, 16]))
    assert far == pytest.approx(25 + (1 - 3) ** 2 + (2 - 4) ** 2)
    generator = torch.Generator().manual_seed(0)
    a, b = Moments(), Moments()
    a.add(torch.randn(50, 6, generator=generator))
    b.add(torch.randn(4, 6, generator=generator) + 1)  # fewer vectors than dimensions
    product = torch.linalg.eigvals(a.covariance @ b.covariance).real.clamp(min=0).sqrt().sum()
    other = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * product
    assert frechet_distance(a, b) == pytest.approx(float(other), rel=1e-5)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b)) and abs(frechet_distance(a, a)) < 1e-9
    with pytest.raises(ValueError, match="0 and 50"):
        frechet_distance(Moments(), a)


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """A small first stage for pictures of 16 pixels, with its validation pictures."""
    config = copy.deepcopy(VQ)
    config["params"]["ddconfig"]["resolution"] = 16
    model = instantiate_from_config(config)
    randomise(model)
    write_weights(tmp_path / "stage" / "model.safetensors", model.state_dict())
    pictures = write_pictures(tmp_path / "pictures", 10)
    pictures["params"]["size"] = 16
    data = {"target": "ldm.data.DataModule", "params": {"batch_size": 2, "validation": pictures}}
    write_config(tmp_path / "stage" / "config.yaml", {"model": config, "data": data})
    return tmp_path / "stage"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs the script in this process; returns its output, or its error message of one line."""

    def call(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, words)])
        try:
            runpy.run_path(str(ROOT / "scripts" / "evaluate.py"), run_name="__main__")
        except SystemExit as end:
            assert end.code == 2
            return capsys.readouterr().err.splitlines()[-1]
        return capsys.readouterr().out

    return call


def test_report_holds_figures_protocol_and_picture(run, stage: Path, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip")
    words = ("reconstruction", stage, "--perceptual", clip, "--features", clip, "--batch_size", 4, "--rows", 3)
    printed = run(*words, "--by", "class_id", "--outdir", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    figures, protocol = report["figures"], report["protocol"]
    assert set(figures) == {"psnr", "ssim", "l1", "perceptual", "rfid", "codebook"} and "psnr" in printed
    assert protocol["model"]["sha256"] == file_hash(stage / "model.safetensors")
    assert protocol["data"]["n"] == 10 and protocol["perceptual"].startswith("ClipDistance of")
    assert protocol["rfid"]["features"] == clip and len(protocol["rfid"]["fingerprint"]) == 32
    assert protocol["versions"]["torch"] and protocol["arguments"]["batch_size"] == 4
    assert {name: group["n"] for name, group in report["by"]["class_id"].items()} == {"class0": 5, "class1": 5}
    assert Image.open(tmp_path / "out" / "reconstruction.png").size == (3 * 18 + 2, 3 * 18 + 2)

    found = load_first_stage(stage)
    dataset: Any = instantiate_from_config(evaluation_data(found, None, None, None))
    images = torch.stack([dataset[i]["image"] for i in range(10)])
    with torch.no_grad():
        made, _, codes = found.model(images)
    assert figures["psnr"] == pytest.approx(psnr(images, made.clamp(-1, 1)).mean().item(), rel=1e-5)
    assert figures["codebook"]["used"] == len(codes.unique())
    run(*words[:-4], "--batch_size", 5, "--outdir", tmp_path / "again")
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert again["figures"]["rfid"] == pytest.approx(figures["rfid"], rel=1e-4)
    assert again["protocol"]["data"]["pixels_sha256"] == protocol["data"]["pixels_sha256"]


def test_a_perceptual_distance_by_torchvisions_networks(tmp_path: Path) -> None:
    file = tmp_path / "net.safetensors"
    write_weights(file, get_model("mobilenet_v2", weights=None).state_dict())
    network = perceptual_distance(f"mobilenet_v2:{file}")
    assert network.name.startswith("TorchvisionDistance of mobilenet_v2 (net.safetensors)")
    with pytest.raises(FileNotFoundError, match="none.pth"):
        perceptual_distance("resnet18:none.pth")


def test_a_kl_stage_other_pictures_and_tiles(run, tmp_path: Path) -> None:
    write_weights(tmp_path / "kl" / "weights.safetensors", instantiate_from_config(KL).state_dict())
    write_config(tmp_path / "kl.yaml", {"model": KL})
    write_pictures(tmp_path / "pictures", 3)
    words = ("reconstruction", tmp_path / "kl" / "weights.safetensors", "--config", tmp_path / "kl.yaml", "--data")
    given = (*words, tmp_path / "pictures", "--size", 32, "--features", "none", "--perceptual", "none", "--outdir")
    run(*given, tmp_path / "whole")
    small = (*words, tmp_path / "pictures", "--size", 8, "--features", "none", "--perceptual", "models/clip/emoji")
    assert "pictures of 8 x 8 pixels are too small for ClipDistance" in run(*small, "--outdir", tmp_path / "small")
    run(*given, tmp_path / "tiles", "--tile", 16)
    whole, tiles = (json.loads((tmp_path / n / "results.json").read_text()) for n in ("whole", "tiles"))
    assert (
        set(whole["figures"]) == {"psnr", "ssim", "l1"} and "tiles of 16 pixels" in tiles["protocol"]["reconstruction"]
    )
    assert tiles["figures"]["psnr"] != whole["figures"]["psnr"]
    assert tiles["figures"]["psnr"] == pytest.approx(whole["figures"]["psnr"], abs=1.0)
    assert "Parquet" in run(*given, tmp_path / "x", "--split", "val")
    assert "config" in run(*words[:2], "--data", tmp_path / "pictures")


def test_mistakes_are_answered_in_one_line(run, stage: Path, tmp_path: Path) -> None:
    off = ("--features", "none", "--perceptual", "none", "--outdir", tmp_path / "out")
    assert str(tmp_path / "none") in run("reconstruction", tmp_path / "none")
    assert "--data" in run("reconstruction", stage, "--data", tmp_path / "none", *off)
    assert "--by style" in run("reconstruction", stage, "--by", "style", *off)
    assert "'big'" in run("reconstruction", stage, "--tile", "big", *off)
    assert "factor 2" in run("reconstruction", stage, "--tile", "13", *off)
    inside = stage / "config.yaml" / "out"
    assert f"{inside.parent}, expected a folder" in run("reconstruction", stage, *off[:-1], inside)
    assert not (tmp_path / "out").exists()


@torch.no_grad()
def test_shipped_first_stage_keeps_its_stated_figures() -> None:
    stage = load_first_stage(ROOT / "models" / "first_stage" / "emoji-vq-f4")
    config = evaluation_data(stage, str(ROOT / "data" / "emoji"), "val", None)
    config["params"]["where"] = {"style": list(STYLES)}  # which it was trained on
    dataset: Any = instantiate_from_config(config)
    assert len(dataset) > 680 and stage.resolution == 64
    gathered = Reconstruction(stage, None, None)
    for start in range(0, 680, 136):  # a few of each style
        images = [dataset[start + i]["image"] for i in range(8)]
        gathered.add(torch.stack(images).to(next(stage.model.parameters()).device))
    figures = gathered.figures()
    assert figures["psnr"] == pytest.approx(28.8, abs=1.0) and figures["ssim"] == pytest.approx(0.947, abs=0.025)


def test_help_answers_at_once() -> None:
    start = time.perf_counter()
    command = [sys.executable, str(ROOT / "scripts" / "evaluate.py"), "reconstruction", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)})
    assert "--perceptual" in shown.stdout and time.perf_counter() - start < 5
