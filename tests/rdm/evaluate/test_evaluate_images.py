"""The evaluation of pictures from the command line: figures of torch-fidelity, repetition, and error messages."""

from __future__ import annotations

import importlib.metadata
import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures import write_clip, write_pictures
from torch import Tensor
from torchvision.models import get_model

from ldm.checkpoint import write_weights
from ldm.data import ParquetImages
from ldm.files import file_hash
from ldm.pictures import image_grid, save_png
from rdm.evaluate.choices import METRICS
from rdm.evaluate.features import feature_network
from rdm.evaluate.measures import MEASURES
from rdm.evaluate.repeat import compare_figures
from rdm.loading import Loaded

ROOT = Path(__file__).parents[3]
EMOJI, CLIP = ROOT / "data" / "emoji", ROOT / "models" / "clip" / "emoji"
Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs the script in this process; returns its output, or its error message of one line."""

    def call(command: str, *words: object) -> str:
        given = [] if command == "repeat" else ["--cache", tmp_path / "cache", "--outdir", tmp_path / "out"]
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, (command, *words, *given))])
        try:
            runpy.run_path(str(ROOT / "scripts" / "evaluate.py"), run_name="__main__")
        except SystemExit as end:
            assert end.code == 2
            complaint = capsys.readouterr().err
            assert "Traceback" not in complaint
            return complaint.splitlines()[-1]
        return capsys.readouterr().out

    return call


@pytest.fixture
def results(tmp_path: Path) -> Callable[[], dict[str, Any]]:
    return lambda: json.loads((tmp_path / "out" / "results.json").read_text())


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    """Two folders of 40 emoji pictures each; every third of the second is of another style and drawn in lines."""
    for name, files in (("first", ("noto",) * 3), ("second", ("twemoji", "noto", "openmoji-line"))):
        styles = [ParquetImages(str(EMOJI / f"{file}.parquet"), 64) for file in files]
        for number in range(40):
            picture = styles[number % 3][number * 17 + len(set(files))]["image"][None]
            save_png(image_grid({"": picture}, gap=0), tmp_path / name / f"{number:02d}.png")
    return str(tmp_path / "first"), str(tmp_path / "second")


def test_figures_of_two_folders_are_torch_fidelitys(run: Run, results: Any, folders: tuple[str, str]) -> None:
    """Their own loader, statistics and figures, over the shipped CLIP."""
    fidelity = pytest.importorskip("torch_fidelity")
    network = feature_network(str(CLIP))

    class Emoji(fidelity.FeatureExtractorBase):
        def __init__(self, name: str, features_list: list[str], **_: object) -> None:
            super().__init__(name, features_list)

        def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
            return (network.features(pixels / 127.5 - 1)[0].cpu(),)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("clip",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "clip" if metric else ""

        @staticmethod
        def can_be_compiled() -> bool:
            return False

    fidelity.register_feature_extractor("emoji-clip", Emoji)
    first, second = folders
    theirs = fidelity.calculate_metrics(
        input1=first, input2=second, feature_extractor="emoji-clip", fid=True, kid=True, prc=True, verbose=False,
        kid_subset_size=40, kid_subsets=1, cuda=False, cache=False, batch_size=8, save_cpu_ram=True,
    )  # fmt: skip
    run("images", first, "--reference", second, "--features", CLIP, "--kid_size", 40)
    ours = results()["figures"][str(CLIP)]
    assert ours["frechet_distance"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert ours["kernel_distance"]["mean"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert ours["precision"] == pytest.approx(theirs["precision"], abs=1e-3)
    assert ours["recall"] == pytest.approx(theirs["recall"], abs=1e-3)
    assert ours["frechet_distance"] > 1 and 0 < ours["precision"] < 1


def test_a_report_states_all_and_can_be_repeated(
    run: Run, results: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ("images", EMOJI, "--split", "val", "--n", 30, "--size", 64, "--features", CLIP)
    words += ("--reference", EMOJI / "noto.parquet", "--reference_n", 25)
    printed = run(*words)
    report = results()
    figures, protocol = report["figures"][str(CLIP)], report["protocol"]
    assert set(figures) == {
        "frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage", "cmmd", "clip_score"
    }  # fmt: skip
    assert figures["kernel_distance"]["subset"] == 12 and 0.2 < figures["clip_score"] < 1 and "cmmd" in printed
    held_out = len(ParquetImages(str(EMOJI), 64, split="val"))
    assert {name: protocol["pictures"][name] for name in ("n", "of", "size")} == {"n": 30, "of": held_out, "size": 64}
    assert protocol["reference"]["n"] == 25 and protocol["features"] == [feature_network(str(CLIP)).about()]
    assert (
        protocol["versions"]["torch"] == importlib.metadata.version("torch") and protocol["arguments"]["split"] == "val"
    )
    assert set(protocol["metrics"]) == set(METRICS) - {"inception_score"}
    assert "width 256" in caplog.text and "30 pictures against 25" in caplog.text

    again = run("repeat", tmp_path / "out" / "results.json")
    assert again.splitlines()[-1].startswith("all 10 ") and "DIFFERS" not in again
    assert not (tmp_path / "out" / "repeat" / "features").exists()
    report["figures"][str(CLIP)]["cmmd"] *= 1.01
    (tmp_path / "out" / "results.json").write_text(json.dumps(report))
    assert run("repeat", tmp_path / "out" / "results.json").startswith("error: 1 of 10 ")


def test_a_repetition_refuses_what_is_not_the_same(run: Run, tmp_path: Path) -> None:
    clip, pictures = Path(write_clip(tmp_path / "clip")), tmp_path / "pictures"
    write_pictures(pictures, 12)
    write_pictures(tmp_path / "others", 12, seed=1)
    file = tmp_path / "out" / "results.json"
    run("images", pictures, "--reference", tmp_path / "others", "--features", clip, "--metrics", "frechet_distance")
    shutil.rmtree(clip)
    write_clip(clip, seed=1)
    assert str(file) in (line := run("repeat", file)) and feature_network(str(clip)).fingerprint in line
    shutil.rmtree(clip)
    write_clip(clip)
    assert "all 1 " in run("repeat", file)
    (pictures / "class0" / "000.txt").write_text("another caption")
    assert "captions_sha256" in run("repeat", file)
    (pictures / "class0" / "000.txt").unlink()
    write_pictures(pictures, 12, seed=2)
    assert "got sha256" in run("repeat", file)
    shutil.rmtree(pictures)
    assert str(pictures) in run("repeat", file)
    assert "none.json" in run("repeat", tmp_path / "none.json")
    report = json.loads(file.read_text())
    del report["protocol"]["arguments"]["kid_size"]
    file.write_text(json.dumps(report))
    assert "kid_size" in run("repeat", file)
    file.write_text("{}")
    assert str(file) in run("repeat", file)


def test_a_model_is_sampled_and_sampled_again(run: Run, results: Any, loaded: Loaded, tmp_path: Path) -> None:
    clip = loaded.data.embedder_config["params"]["model"]
    words = ("--ckpt", loaded.path, "--reference", EMOJI / "noto.parquet", "--reference_n", 20, "--features", clip)
    words += ("--steps", 1, "--knn", 2)
    run("samples", *words, "--n", 12, "--top_m", 0.5, "--seed", 7)
    about = results()["protocol"]["pictures"]
    assert about["seeds"] == [7, 18] and about["checkpoint_sha256"] == file_hash(loaded.path)
    assert about["asked"].items() >= {"way": "popular", "top_m": 0.5, "weighted": False, "k": 2}.items()
    assert about["index"]["factory"] == "Flat" and about["rows_sha256"] is None
    assert about["settings"]["sampler"] == "unipc" and about["settings"]["steps"] == 1
    assert results()["protocol"]["reference"]["size"] == 16
    assert "all 9 " in run("repeat", tmp_path / "out" / "results.json")
    config = loaded.path.parent / "config.yaml"
    kept = config.read_text()
    try:
        config.write_text(kept.replace("scale: 3.0", "scale: 2.0"))
        assert "config_sha256" in run("repeat", tmp_path / "out" / "results.json")
    finally:
        config.write_text(kept)
    (tmp_path / "prompts.txt").write_text("white flag\n\npirate flag\n")
    run("samples", *words, "--n", 7, "--from-file", tmp_path / "prompts.txt", "--tokens", "text")
    texts = results()
    assert texts["protocol"]["pictures"]["asked"]["prompts"] == 2 and -1 <= texts["figures"][clip]["clip_score"] <= 1
    (tmp_path / "prompts.txt").write_text("white flag\n\nblack flag\n")
    assert "got asked" in run("repeat", tmp_path / "out" / "results.json")


def test_a_classifier_gives_an_inception_score_beside_a_clip(run: Run, results: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    write_weights(tmp_path / "net.safetensors", get_model("mobilenet_v2", weights=None).state_dict())
    write_pictures(tmp_path / "pictures", 12)
    name, clip = f"mobilenet_v2:{tmp_path / 'net.safetensors'}", write_clip(tmp_path / "clip")
    words = ("images", tmp_path / "pictures", "--features", name, clip)  # without a reference
    assert f"{clip} alone; give --reference" in run(*words)
    for file in (tmp_path / "pictures").rglob("*.png"):
        file.with_suffix(".txt").write_text(f"number {file.stem}")
    run(*words)
    figures = results()["figures"]
    assert set(figures[name]) == {"inception_score"} and figures[name]["inception_score"]["mean"] >= 1
    assert set(figures[clip]) == {"clip_score"} and -1 < figures[clip]["clip_score"] < 1


def test_mistakes_are_one_line(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: Loaded) -> None:
    clip, pictures = write_clip(tmp_path / "clip"), tmp_path / "pictures"
    write_pictures(pictures, 4)
    words = ("images", pictures, "--features", clip, "--reference")
    assert str(tmp_path / "none") in run(*words, tmp_path / "none")
    assert "n=5" in run(*words, pictures, "--n", 5)
    assert "k=5" in run(*words, pictures)
    assert "2 to 4" in run(*words, pictures, "--kid_size", 5)
    assert "inception_score needs logits" in run(*words, pictures, "--metrics", "inception_score")
    assert "frechet_distance needs reference" in run(*words[:-1], "--metrics", "frechet_distance")
    assert "models/none" in run("images", pictures, "--features", "models/none")
    assert "'fid'" in run(*words, pictures, "--metrics", "fid")
    samples = ("samples", "--ckpt", loaded.path, "--features", clip, "--n", 4)
    assert "--reference" in run(*samples)
    (tmp_path / "prompts.txt").write_text("\n")
    assert str(tmp_path / "prompts.txt") in run(*samples, "--from-file", tmp_path / "prompts.txt")
    (tmp_path / "prompts.txt").write_text("white flag\n" + "flag " * 20)
    assert "22 tokens" in run(*samples, "--from-file", tmp_path / "prompts.txt")
    assert f"caption in {pictures}" in run(*samples, "--captions", pictures)
    assert "top_k=3" in run(*samples, "--top_k", 3)
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(module, "URL_INCEPTION_V3", "http://127.0.0.1:9/weights-inception-2015-12-05-6726825d.pth")
    assert "weights-inception-2015-12-05-6726825d.pth" in run("images", pictures, "--features", "inception")
    assert not (tmp_path / "out").exists()


def test_what_counts_as_equal() -> None:
    before = {"a": {"x": 1.0, "y": {"mean": 0.0}}, "b": {"x": -2.0}}
    after = {"a": {"x": 1.0009, "y": {"mean": 1e-12}}, "b": {"x": -2.01}}
    assert {name: figure["equal"] for name, figure in compare_figures(before, after).items()} == {
        "a x": True, "a y mean": True, "b x": False
    }  # fmt: skip
    assert tuple(MEASURES) == METRICS  # named without importing torch, too
