"""Plain latent diffusion models from training to images, reports and exports, on the command line."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from toy import plain_config

import main
from ldm.checkpoint import read_weights
from ldm.config import read_config, write_config
from ldm.run import check_described, read_class_names

ROOT = Path(__file__).parents[3]
NAMES = ["class0", "class1", "class2"]
Run = Callable[..., str]
Trained = dict[str | None, Path]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Returns the run folders of tiny models that were trained for three steps, by what they read."""
    runs: dict[str | None, Path] = {}
    for reads in (None, "classes", "texts"):
        folder = tmp_path_factory.mktemp("trained")
        config = plain_config(folder, reads, learning_rate=1e-2, ema_decay=0.5)
        config["lightning"] = {
            "trainer": {"max_steps": 3, "accelerator": "cpu", "enable_progress_bar": False},
            "callbacks": {"images": {"target": "ldm.callbacks.ImageLogger", "params": {"max_images": 2}}},
        }
        write_config(folder / "a.yaml", config)
        runs[reads] = folder / "run"
        main.train(main.parse(["-b", str(folder / "a.yaml"), "-t", "-p", str(runs[reads])]))
    return runs


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Returns a function that runs a script and returns the last line of its output, or of its error if it is wrong."""

    def call(script: str, *words: object, wrong: bool = False) -> str:
        monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
        monkeypatch.chdir(tmp_path)
        try:
            runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")
        except SystemExit as end:
            assert end.code == 2
            complaint = capsys.readouterr().err
            assert "Traceback" not in complaint
            assert wrong, complaint
            return complaint.splitlines()[-1]
        assert not wrong
        return capsys.readouterr().out.strip().splitlines()[-1]

    return call


def record(grid: str) -> dict[str, Any]:
    return json.loads(Path(grid.replace("-grid.png", ".json")).read_text())


def pixels(grid: str) -> list[bytes]:
    return [Image.open(Path(grid).with_name(each["file"])).tobytes() for each in record(grid)["images"]]


def test_a_run_keeps_the_names_of_its_classes(trained: Trained) -> None:
    assert {reads: read_class_names(folder) for reads, folder in trained.items()} == {
        None: [], "classes": NAMES, "texts": [],
    }  # fmt: skip
    weights = read_weights(trained["classes"] / "checkpoints/last.ckpt")["cond_stage_model.embedding.weight"]
    assert weights.shape == (4, 8)
    assert all((folder / "images/0000003.png").is_file() for folder in trained.values())


@pytest.mark.parametrize(
    ("reads", "script", "words", "queries"),
    [
        (None, "sample.py", [], ["unconditional"] * 2),
        ("classes", "class2img.py", ["--class", "class2", "--class", "0"], ["class2", "class2", "class0", "class0"]),
        ("classes", "sample.py", [], ["unconditional"] * 2),
        ("texts", "txt2img.py", ["--prompt", "a flag"], ["a flag"] * 2),
        ("texts", "sample.py", ["--caption", "a flag"], ["a flag"] * 2),
        ("texts", "txt2img.py", ["--prompt", "a flag", "--only_caption"], ["a flag"] * 2),
    ],
)
def test_scripts_sample_a_run(
    trained: Trained, run: Run, reads: str | None, script: str, words: list[str], queries: list[str]
) -> None:
    grid = run(script, "--ckpt", trained[reads], "--steps", 2, "--n_samples", 2, *words)
    found = record(grid)
    assert [image["query"] for image in found["images"]] == queries and found["tokens"] == "condition"
    assert len(set(pixels(grid))) == len(queries)
    again = run("sample.py", "--from-image", grid.replace("-grid", "-001"))
    assert pixels(again) == pixels(grid)[1:2]


def test_a_picture_is_edited_under_a_class(trained: Trained, run: Run, tmp_path: Path) -> None:
    Image.effect_noise((16, 16), 80).convert("RGB").save(tmp_path / "a.png")
    words = ["--ckpt", trained["classes"], "--image", tmp_path / "a.png", "--steps", 2]
    grid = run("edit.py", *words, "--class", "class1", "--strength", 0.5)
    assert record(grid)["images"][0]["given"] == 1
    assert "comes back at" in run("edit.py", *words, "--invert") or "edit-grid.png" in run(
        "edit.py", *words, "--invert"
    )
    assert "is class-conditional" in run("edit.py", *words, "--prompt", "a flag", "--strength", 0.5, wrong=True)


@pytest.mark.parametrize(
    ("reads", "words", "asked"),
    [
        (None, [], {"way": "unconditional"}),
        ("classes", [], {"way": "class", "classes": 3}),
        ("texts", ["--from-file", "prompts.txt"], {"way": "text", "prompts": 2}),
    ],
)
def test_samples_are_measured(
    trained: Trained,
    run: Run,
    tmp_path: Path,
    reads: str | None,
    words: list[str],
    asked: dict[str, Any],
) -> None:
    (tmp_path / "prompts.txt").write_text("a flag\na dog\n")
    folder = trained[reads].parent
    common = [
        "--features",
        folder / "clip",
        "--reference",
        folder / "pictures",
        "--metrics",
        "kernel_distance",
        "--kid_size",
        3,
    ]
    run("evaluate.py", "samples", "--ckpt", trained[reads], "--n", 6, "--steps", 1, *common, *words)
    report = json.loads((tmp_path / "outputs/samples/results.json").read_text())
    about = report["protocol"]["pictures"]
    assert about["asked"].items() >= asked.items() and about["n"] == 6 and "database" not in about
    assert report["figures"]
    assert run("evaluate.py", "repeat", tmp_path / "outputs/samples/results.json")


def test_a_report_of_copies_needs_a_database(trained: Trained, run: Run) -> None:
    assert "is a plain model" in run("evaluate.py", "memorisation", trained[None], "--outdir", "out", wrong=True)


@pytest.mark.parametrize("reads", [None, "classes", "texts"])
def test_an_exported_model_makes_the_same_images(trained: Trained, run: Run, tmp_path: Path, reads: str | None) -> None:
    run("export_checkpoint.py", trained[reads], "--output", tmp_path / "exported", "--float32")
    script, words = {
        None: ("sample.py", []),
        "classes": ("class2img.py", ["--class", "class1"]),
        "texts": ("txt2img.py", ["--prompt", "a flag"]),
    }[reads]
    made = [
        pixels(run(script, "--ckpt", ckpt, "--steps", 2, "--n_samples", 1, "--outdir", name, *words))
        for name, ckpt in (("a", trained[reads]), ("b", tmp_path / "exported"))
    ]
    assert made[0] == made[1]
    assert read_class_names(tmp_path / "exported") == (NAMES if reads == "classes" else [])


@pytest.mark.parametrize("reads", [None, "classes"])
def test_an_export_for_compvis_has_its_weights_and_can_be_sampled(
    trained: Trained, run: Run, tmp_path: Path, reads: str | None
) -> None:
    run("export_checkpoint.py", trained[reads], "--output", tmp_path / "theirs", "--to", "compvis")
    config = read_config([tmp_path / "theirs/config.yaml"])
    state = read_weights(tmp_path / "theirs/model.ckpt")
    check_described(config["model"], state, "model.ckpt")
    if reads == "classes":
        assert state["cond_stage_model.embedding.weight"].shape == (4, 8)
        assert read_class_names(tmp_path / "theirs") == NAMES
        assert "away from class 3" in (tmp_path / "theirs/config.yaml").read_text()
        words = ["--class", "class1", "--scale", 1]
    script = "class2img.py" if reads else "sample.py"
    options = ["--steps", 2, "--n_samples", 1, *(words if reads else [])]
    made = [
        pixels(run(script, "--ckpt", ckpt, "--outdir", name, *options))
        for name, ckpt in (("a", trained[reads]), ("b", tmp_path / "theirs"))
    ]
    assert made[0] == made[1]


def test_classes_go_to_diffusers_and_back(trained: Trained, run: Run, tmp_path: Path) -> None:
    run("export_checkpoint.py", trained["classes"], "--output", tmp_path / "theirs", "--to", "diffusers")
    run("export_checkpoint.py", tmp_path / "theirs", "--from", "diffusers", "--output", tmp_path / "back")
    kept, back = (read_weights(tmp_path / name) for name in ("theirs/other.safetensors", "back/model.safetensors"))
    name = "cond_stage_model.embedding.weight"
    assert torch.equal(kept[name], back[name]) and read_class_names(tmp_path / "back") == NAMES


@pytest.mark.parametrize(
    ("reads", "script", "words", "line"),
    [
        (None, "txt2img.py", ["--prompt", "a"], "is unconditional, expected a model that reads texts; use sample.py"),
        (None, "class2img.py", ["--class", "a"], "is unconditional, expected a model that reads classes"),
        ("classes", "class2img.py", ["--class", "clas2"], "has no class 'clas2'; did you mean 'class2'?"),
        ("texts", "txt2img.py", ["--prompt", "a", "--use_query"], "got tokens='both'"),
        ("texts", "txt2img.py", ["--prompt", "a", "--to", "b"], "has no database"),
        ("texts", "txt2img.py", ["--prompt", "a", "--knn", 3], "got k=3"),
        (None, "sample.py", ["--rows", 3], "has no database"),
        (None, "sample.py", ["--use_weights"], "got weighted=True"),
        (None, "sample.py", ["--database", "data/none"], "got database"),
        (None, "sample.py", ["--best_of", 2], "got best_of=2"),
    ],
)
def test_what_a_plain_model_cannot_do_is_said_in_one_line(
    trained: Trained, run: Run, reads: str | None, script: str, words: list[Any], line: str
) -> None:
    assert line in run(script, "--ckpt", trained[reads], *words, wrong=True)


def test_the_newest_plain_run_has_a_name(trained: Trained, run: Run, tmp_path: Path) -> None:
    complaint = run("sample.py", "--model", "ldm", wrong=True)
    assert "no checkpoint at models/ldm/emoji in " in complaint and "--base configs/ldm/emoji.yaml" in complaint
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/a").symlink_to(trained[None])
    found = record(run("sample.py", "--model", "ldm", "--steps", 1, "--n_samples", 1))
    assert found["checkpoint"] == "logs/a/checkpoints/last.ckpt"
